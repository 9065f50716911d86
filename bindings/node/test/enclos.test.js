'use strict'

// The shared vectors through the Node.js module, and what is JavaScript's own.

const assert = require('node:assert/strict')
const { readFileSync } = require('node:fs')
const { join } = require('node:path')
const { test } = require('node:test')

const { Refused, VerifiedDocument, Verifier, lintPolicy } = require('..')

const vectors = join(__dirname, '../../../crates/attest/tests/vectors')
const manifest = JSON.parse(readFileSync(join(vectors, 'manifest.json'), 'utf8'))
// The document that may not be copied has no file.
const documents = manifest.documents.filter((entry) => entry.file)
const read = (entry) => readFileSync(join(vectors, entry.file))
const named = (name) => documents.find((entry) => entry.name === name)

function verifier(entry, more = {}) {
  const aws = entry.root === 'aws'
  const roots = aws ? {} : { [entry.root]: readFileSync(join(vectors, manifest.roots[entry.root])) }
  const { maxAgeSeconds, archival, allowDebug } = entry
  return new Verifier({ roots, aws, maxAgeSeconds, archival, allowDebug, ...more })
}

test('there are vectors', () => assert.ok(documents.length > 100))

for (const entry of documents) {
  test(`vector ${entry.name}`, () => {
    const judge = verifier(entry)
    // The second time, the chain is known.
    for (let time = 0; time < 2; time++) {
      const verify = () => judge.verify(read(entry), { now: entry.at })
      if (entry.accepted) {
        assert.equal(verify().root, entry.root)
      } else {
        assert.throws(verify, (error) => error instanceof Refused && error.reasons.join(': ').includes(entry.reason))
      }
    }
  })
}

test('what a document says', () => {
  const entry = named('aws-pcr16')
  const verified = verifier(entry).verify(read(entry), { now: entry.at })
  assert.ok(verified instanceof VerifiedDocument && verified.moduleId.startsWith('i-'))
  assert.equal(verified.timestamp, entry.at)
  assert.equal(Object.keys(verified.pcrs).length, 17)
  assert.equal(verified.pcrs[0].length, 96)
  assert.deepEqual([verified.userData.length, verified.nonce, verified.publicKey.length], [0, null, 32])
  assert.equal(verified.isDebug, false)
  assert.ok(Object.isFrozen(verified) && Object.isFrozen(verified.pcrs))
  assert.throws(() => new VerifiedDocument(), TypeError)
})

test('registers, nonce and policy', () => {
  const [entry, pcr0] = [named('good'), '10'.repeat(48)]
  const now = entry.at
  const refused = (judge, reason, options = {}) =>
    assert.throws(() => judge.verify(read(entry), { now, ...options }), { name: 'Refused', message: reason })
  verifier(entry, { pcrs: { 0: pcr0 } }).verify(read(entry), { now })
  refused(verifier(entry), /nonce is absent, expected 01/, { nonce: Buffer.from([1]) })
  refused(verifier(entry, { pcrs: { 0: '11'.repeat(48) } }), /PCR0 is/)
  const policy = { version: 1, measurements: { app: { pcrs: { 0: pcr0 } } }, require: { measurements: ['app'] } }
  verifier(entry, { policy: JSON.stringify(policy) }).verify(read(entry), { now })
  policy.require = { not: policy.require }
  refused(verifier(entry, { policy: JSON.stringify(policy) }), /what the policy forbids/)
  assert.ok(lintPolicy(JSON.stringify(policy)).some((warning) => warning.includes('any image')))
})

test('misuse is a TypeError', () => {
  assert.throws(() => new Verifier(), { name: 'TypeError', message: /no root is trusted/ })
  assert.throws(() => new Verifier({ aws: true, pcrs: { 32: '00'.repeat(48) } }), { name: 'TypeError', message: /there is no PCR32/ })
  assert.throws(() => new Verifier({ aws: true, pcrs: { x: '00'.repeat(48) } }), TypeError)
  assert.throws(() => new Verifier({ aws: true, policy: '{}' }), { name: 'TypeError', message: /not a measurement policy/ })
  assert.throws(() => new Verifier({ aws: true, maxAgeSeconds: -1 }), TypeError)
  assert.throws(() => verifier(named('good')).verify(read(named('good')), { now: Number.NaN }), TypeError)
})
