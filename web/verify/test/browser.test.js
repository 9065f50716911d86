'use strict'

// The page in a browser, as it is served: what a person does, and what they then read.

const assert = require('node:assert/strict')
const { readFileSync, writeFileSync } = require('node:fs')
const { createServer } = require('node:http')
const { join } = require('node:path')
const { after, before, test } = require('node:test')

const { start } = require('./browser.js')

const vectors = join(__dirname, '../../../crates/attest/tests/vectors')
const manifest = JSON.parse(readFileSync(join(vectors, 'manifest.json'), 'utf8'))
const named = (name) => manifest.documents.find((entry) => entry.name === name)
const file = (name) => join(vectors, named(name).file)
const root = (name) => join(vectors, manifest.roots[named(name).root])
const PCR0 = `0 = ${'10'.repeat(48)}`
const LIMIT = { timeout: 60_000 }

let browser
let server
before(async () => {
  const html = readFileSync(process.env.ENCLOS_PAGE)
  server = createServer((_, response) => response.setHeader('content-type', 'text/html').end(html))
  await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve))
  browser = start(process.env.ENCLOS_BROWSER)
}, LIMIT)
after(async () => {
  server.close()
  await browser.close()
}, LIMIT)

/** The page, at a moment. */
async function opened(at = Date.now()) {
  const page = await browser.open()
  await page.command('Page.addScriptToEvaluateOnNewDocument', { source: `Date.now = () => ${at}` })
  const url = `http://127.0.0.1:${server.address().port}/`
  await page.command('Page.navigate', { url })
  await page.until("document.documentElement.dataset.ready === 'yes'")
  return { ...page, url }
}

const write = (page, id, text) => page.evaluate(`document.getElementById('${id}').value = ${JSON.stringify(text)}`)
const click = (page, selector) => page.evaluate(`document.querySelector("${selector}").click()`)

/** Presses the button and reads the verdict. */
async function verdict(page) {
  await page.evaluate("document.getElementById('verdict').replaceChildren()")
  await click(page, 'button')
  await page.until("document.getElementById('verdict').childElementCount")
  return page.evaluate("({ kind: document.getElementById('verdict').className, text: document.getElementById('verdict').innerText })")
}

/** The form filled in for the vector `good`. */
async function good(name = 'good') {
  const page = await opened(named('good').at)
  await page.choose('#document-file', file(name))
  await page.choose('#root-file', root('good'))
  await write(page, 'pcrs', PCR0)
  return page
}

test('a genuine document of one’s own root is verified, and the page calls nobody', LIMIT, async () => {
  const page = await good()
  const { kind, text } = await verdict(page)
  assert.equal(kind, 'good', text)
  assert.match(text, /^Verified: it is the enclave that you described/)
  assert.match(text, /not by AWS/)
  assert.deepEqual(page.calls, [page.url])
  assert.deepEqual(page.faults, [])
})

test('a genuine document of AWS is verified at its own time, pasted', LIMIT, async () => {
  const page = await opened()
  await write(page, 'document', readFileSync(file('aws-record')).toString('base64'))
  await click(page, 'input[name=root][value=aws]')
  const now = await verdict(page)
  assert.equal(now.kind, 'bad', now.text)
  await click(page, 'input[name=time][value=own]')
  const { kind, text } = await verdict(page)
  assert.equal(kind, 'warn', text)
  assert.match(text, /AWS's Nitro Enclaves root/)
})

test('broken documents are refused, with the reason', LIMIT, async () => {
  const page = await opened(named('good').at)
  await page.choose('#root-file', root('good'))
  const bytes = readFileSync(file('good'))
  bytes[bytes.length - 1] ^= 1
  await write(page, 'document', bytes.toString('base64'))
  const flipped = await verdict(page)
  assert.equal(flipped.kind, 'bad')
  assert.match(flipped.text, /^Refused: do not trust this enclave[^]*signature/)
  for (const name of ['old', 'key-compressed', 'debug-pcr0', 'nitrotpm', 'key-twice']) {
    await page.evaluate(`void (Date.now = () => ${named(name).at})`)
    await page.choose('#document-file', file(name))
    const { kind, text } = await verdict(page)
    assert.equal(kind, 'bad', `${name}: ${text}`)
    assert.ok(text.includes(named(name).reason), `${name}: ${text}`)
  }
  assert.deepEqual(page.faults, [])
})

test('another image and another root are refused', LIMIT, async () => {
  const page = await good()
  await write(page, 'pcrs', PCR0.replace('10', '11'))
  assert.match((await verdict(page)).text, /PCR0 is/)
  await click(page, 'input[name=root][value=aws]')
  assert.equal((await verdict(page)).kind, 'bad')
})

test('it fits a narrow and a wide screen, in the light and in the dark', LIMIT, async () => {
  const page = await good()
  await verdict(page)
  for (const [width, mobile] of [[360, true], [1100, false]]) {
    for (const scheme of ['light', 'dark']) {
      await page.command('Emulation.setDeviceMetricsOverride', { width, height: 900, deviceScaleFactor: 1, mobile })
      await page.command('Emulation.setEmulatedMedia', { features: [{ name: 'prefers-color-scheme', value: scheme }] })
      const overflow = 'document.documentElement.scrollWidth - document.documentElement.clientWidth'
      assert.equal(await page.evaluate(overflow), 0, `${width} pixels`)
      assert.ok((await contrast(page)) >= 4.5, `${scheme}: text is hard to read`)
      if (process.env.ENCLOS_SCREENSHOTS) {
        const { data } = await page.command('Page.captureScreenshot', { captureBeyondViewport: true })
        writeFileSync(join(process.env.ENCLOS_SCREENSHOTS, `verify-${width}-${scheme}.png`), Buffer.from(data, 'base64'))
      }
    }
  }
})

/** The smallest contrast of text on its background, as WCAG counts it. */
const contrast = (page) =>
  page.evaluate(`(() => {
    const parts = (color) => color.match(/[\\d.]+/g).map(Number)
    const light = (color) => {
      const [r, g, b] = parts(color).map((part) => part / 255).map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
      return 0.2126 * r + 0.7152 * g + 0.0722 * b
    }
    const solid = (element) => {
      const color = getComputedStyle(element).backgroundColor
      const [, , , alpha = 1] = parts(color)
      if (alpha > 0) return color
      return element.parentElement ? solid(element.parentElement) : 'rgb(255, 255, 255)'
    }
    const ratios = [...document.querySelectorAll('h1, p, label, legend, small, textarea, input, button, output, li')].map((element) => {
      const [one, other] = [light(getComputedStyle(element).color), light(solid(element))].sort((a, b) => b - a)
      return (one + 0.05) / (other + 0.05)
    })
    return Math.min(...ratios)
  })()`)
