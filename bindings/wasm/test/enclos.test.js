'use strict'

// The shared vectors through the WebAssembly module, and what is this module's own.

const assert = require('node:assert/strict')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { before, test } = require('node:test')

const { load, Refused } = require('../enclos.js')

const wasm = readFileSync(process.env.ENCLOS_WASM)
const vectors = join(__dirname, '../../../crates/attest/tests/vectors')
const manifest = JSON.parse(readFileSync(join(vectors, 'manifest.json'), 'utf8'))
// The document that may not be copied has no file.
const documents = manifest.documents.filter((entry) => entry.file)
const read = (entry) => readFileSync(join(vectors, entry.file))
const named = (name) => documents.find((entry) => entry.name === name)

let enclos
before(async () => {
  enclos = await load(wasm)
})

function options(entry, more = {}) {
  const aws = entry.root === 'aws'
  const roots = aws ? {} : { [entry.root]: readFileSync(join(vectors, manifest.roots[entry.root])) }
  const { maxAgeSeconds, archival, allowDebug } = entry
  return { roots, aws, maxAgeSeconds, archival, allowDebug, now: entry.at, ...more }
}

test('there are vectors', () => assert.ok(documents.length > 100))

test('it imports nothing', async () => {
  assert.deepEqual(WebAssembly.Module.imports(await WebAssembly.compile(wasm)), [])
})

for (const entry of documents) {
  test(`vector ${entry.name}`, () => {
    const verify = () => enclos.verify(read(entry), options(entry))
    if (entry.accepted) {
      assert.equal(verify().root, entry.root)
    } else {
      assert.throws(verify, (error) => error instanceof Refused && error.message.includes(entry.reason))
    }
  })
}

test('what a document says', () => {
  const entry = named('aws-pcr16')
  const verified = enclos.verify(read(entry), options(entry))
  assert.ok(verified.moduleId.startsWith('i-'))
  assert.equal(verified.timestamp, entry.at)
  assert.equal(Object.keys(verified.pcrs).length, 17)
  assert.equal(verified.pcrs[0].length, 96)
  assert.deepEqual([verified.userData.length, verified.nonce, verified.publicKey.length], [0, null, 32])
  assert.equal(verified.isDebug, false)
})

test('registers, nonce and policy', () => {
  const [entry, pcr0] = [named('good'), '10'.repeat(48)]
  const refused = (reason, more) =>
    assert.throws(() => enclos.verify(read(entry), options(entry, more)), { name: 'Refused', message: reason })
  enclos.verify(read(entry), options(entry, { pcrs: { 0: pcr0 } }))
  refused(/nonce is absent, expected 01/, { nonce: Uint8Array.of(1) })
  refused(/PCR0 is/, { pcrs: { 0: '11'.repeat(48) } })
  const policy = { version: 1, measurements: { app: { pcrs: { 0: pcr0 } } }, require: { measurements: ['app'] } }
  enclos.verify(read(entry), options(entry, { policy: JSON.stringify(policy) }))
  policy.require = { not: policy.require }
  refused(/what the policy forbids/, { policy: JSON.stringify(policy) })
  assert.ok(enclos.lintPolicy(JSON.stringify(policy)).some((warning) => warning.includes('any image')))
})

test('misuse is a TypeError', () => {
  const entry = named('good')
  const misused = (more, message) =>
    assert.throws(() => enclos.verify(read(entry), options(entry, more)), { name: 'TypeError', message })
  misused({ roots: {} }, /no root is trusted/)
  misused({ pcrs: { 32: '00'.repeat(48) } }, /there is no PCR32/)
  misused({ policy: '{}' }, /not a measurement policy/)
  misused({ maxAgeSeconds: -1 }, /./)
  misused({ now: Number.NaN }, /./)
  misused({ roots: { x: Uint8Array.of(1) } }, /./)
  assert.throws(() => enclos.verify(new Uint8Array(3 << 20), options(entry)), { name: 'TypeError', message: /too long/ })
  // The module is as good as before.
  enclos.verify(read(entry), options(entry))
})
