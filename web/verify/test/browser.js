'use strict'

// A browser without a window, driven over a pipe in the DevTools protocol; no package is needed for that.

const { spawn } = require('node:child_process')
const { mkdtempSync, rmSync } = require('node:fs')
const { tmpdir } = require('node:os')
const { join } = require('node:path')

const QUIET = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--disable-dev-shm-usage',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--remote-debugging-pipe',
]

/** Starts a browser with a profile of its own. */
function start(program) {
  const profile = mkdtempSync(join(tmpdir(), 'enclos-browser-'))
  const stdio = ['ignore', 'ignore', 'ignore', 'pipe', 'pipe']
  const child = spawn(program, [...QUIET, `--user-data-dir=${profile}`, 'about:blank'], { stdio })
  const waiting = new Map()
  const listeners = []
  let last = 0
  let rest = ''

  child.stdio[4].setEncoding('utf8').on('data', (text) => {
    const messages = (rest + text).split('\0')
    rest = messages.pop()
    for (const message of messages.map((message) => JSON.parse(message))) {
      if (!message.id) listeners.forEach((listen) => listen(message))
      else if (message.error) waiting.get(message.id).reject(new Error(message.error.message))
      else waiting.get(message.id).resolve(message.result)
      waiting.delete(message.id)
    }
  })
  const ended = new Promise((resolve) => child.on('exit', resolve))
  ended.then(() => waiting.forEach(({ reject }) => reject(new Error('the browser ended'))))

  function send(method, params = {}, sessionId) {
    const id = ++last
    child.stdio[3].write(`${JSON.stringify({ id, method, params, sessionId })}\0`)
    return new Promise((resolve, reject) => waiting.set(id, { resolve, reject }))
  }

  async function close() {
    await send('Browser.close').catch(() => {})
    await ended
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 })
  }

  return { close, open: () => page(send, listeners), listeners }
}

/** A new page; `calls` and `faults` are what it asked of the network and what went wrong in it. */
async function page(send, listeners) {
  const { targetId } = await send('Target.createTarget', { url: 'about:blank' })
  const { sessionId } = await send('Target.attachToTarget', { targetId, flatten: true })
  const command = (method, params) => send(method, params, sessionId)
  const calls = []
  const faults = []
  listeners.push((event) => {
    if (event.sessionId !== sessionId) return
    if (event.method === 'Network.requestWillBeSent') calls.push(event.params.request.url)
    if (event.method === 'Runtime.exceptionThrown') faults.push(event.params.exceptionDetails.text)
    if (event.method === 'Log.entryAdded') faults.push(event.params.entry.text)
  })
  for (const domain of ['Page', 'Runtime', 'Network', 'Log', 'DOM']) await command(`${domain}.enable`)

  async function evaluate(expression) {
    const { result, exceptionDetails } = await command('Runtime.evaluate', { expression, awaitPromise: true, returnByValue: true })
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text)
    return result.value
  }

  /** Waits until an expression is true. */
  async function until(expression, limit = 30_000) {
    for (const end = Date.now() + limit; Date.now() < end; ) {
      if (await evaluate(`Boolean(${expression})`).catch(() => false)) return
      await new Promise((resolve) => setTimeout(resolve, 50))
    }
    throw new Error(`this did not come true: ${expression}`)
  }

  /** Chooses a file as a person does. */
  async function choose(selector, file) {
    const { root } = await command('DOM.getDocument')
    const { nodeId } = await command('DOM.querySelector', { nodeId: root.nodeId, selector })
    await command('DOM.setFileInputFiles', { nodeId, files: [file] })
  }

  return { calls, choose, command, evaluate, faults, until }
}

module.exports = { start }
