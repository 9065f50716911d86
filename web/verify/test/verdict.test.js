'use strict'

// What the page says, with the real module and the shared vectors; and that the page is whole.

const assert = require('node:assert/strict')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { before, test } = require('node:test')

const { load } = require('../../../bindings/wasm/enclos.js')
const { decode, judge, registers } = require('../verdict.js')

const vectors = join(__dirname, '../../../crates/attest/tests/vectors')
const manifest = JSON.parse(readFileSync(join(vectors, 'manifest.json'), 'utf8'))
const named = (name) => manifest.documents.find((entry) => entry.name === name)
const document = (name) => readFileSync(join(vectors, named(name).file))
const root = (name) => readFileSync(join(vectors, manifest.roots[named(name).root]))
const PCR0 = `0 = ${'10'.repeat(48)}`

let enclos
before(async () => {
  enclos = await load(readFileSync(process.env.ENCLOS_WASM))
})

const own = (form, at = named('good').at) =>
  judge(enclos, { document: document('good'), root: 'own', ownRoot: root('good'), ...form }, at)

test('an own root is named as one, and never as AWS', () => {
  const verdict = own({ pcrs: PCR0, nonce: '' })
  assert.deepEqual([verdict.kind, verdict.title], ['good', 'Verified: it is the enclave that you described'])
  assert.match(verdict.lines[0], /root that you chose, not by AWS/)
  assert.match(verdict.lines.join(), /Without a nonce/)
})

test("AWS's documents are AWS's under its root alone", () => {
  const entry = named('aws-pcr16')
  const form = { document: document('aws-pcr16'), root: 'aws', time: 'own' }
  const verdict = judge(enclos, form, entry.at)
  assert.equal(verdict.kind, 'warn')
  assert.match(verdict.lines[0], /AWS's Nitro Enclaves root/)
  const other = judge(enclos, { ...form, root: 'own', ownRoot: root('good') }, entry.at)
  assert.equal(other.kind, 'bad')
  const ours = own({ root: 'aws' })
  assert.deepEqual([ours.kind, ours.title], ['bad', 'Refused: do not trust this enclave'])
})

test('what nobody asked about is not vouched for', () => {
  const verdict = own({})
  assert.equal(verdict.kind, 'warn')
  assert.match(verdict.title, /what runs there was not checked/)
  assert.ok(verdict.lines.some((line) => line.startsWith(`PCR0 ${'10'.repeat(48)}`)))
})

test('refusals and mistakes say what they are', () => {
  assert.match(own({ pcrs: PCR0.replace('10', '11') }).lines.join(), /PCR0 is/)
  assert.equal(own({}, named('good').at + 86_400_000).kind, 'bad')
  for (const [form, title] of [
    [{ ownRoot: null }, 'No root was chosen'],
    [{ document: null }, 'There is no document'],
    [{ pcrs: '0 = 11' }, 'Nothing was verified'],
    [{ nonce: '!' }, 'Nothing was verified'],
    [{ policy: '{}' }, 'Nothing was verified'],
    [{ ownRoot: Uint8Array.of(1) }, 'Nothing was verified'],
  ]) {
    assert.deepEqual([own(form).kind, own(form).title], ['bad', title])
  }
})

test('text is base64 or hexadecimal', () => {
  const bytes = document('good')
  for (const text of [bytes.toString('base64'), bytes.toString('hex'), bytes.toString('base64url'), bytes.toString('hex').replace(/(.{60})/g, '$1\n')]) {
    assert.deepEqual(Buffer.from(decode(text)), bytes)
  }
  assert.throws(() => decode('?'), TypeError)
  assert.deepEqual(registers(`PCR0: ${'AB'.repeat(48)}\n\n"2": "${'01'.repeat(48)}",`), { 0: 'ab'.repeat(48), 2: '01'.repeat(48) })
  assert.throws(() => registers(`${PCR0}\n${PCR0}`), /given twice/)
})

test('the page holds everything and reaches nothing', () => {
  const page = readFileSync(process.env.ENCLOS_PAGE, 'utf8')
  assert.ok(page.includes("default-src 'none'") && !page.includes('{{'))
  assert.doesNotMatch(page, /(src|href)=|\bfetch\(|XMLHttpRequest|WebSocket|sendBeacon/)
  const wasm = /const WASM = '([^']+)'/.exec(page)[1]
  assert.deepEqual(Buffer.from(wasm, 'base64'), readFileSync(process.env.ENCLOS_WASM))
})
