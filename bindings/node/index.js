'use strict'

// `cargo xtask bindings` puts the native half here.
const native = require('./enclos.node')

class Refused extends Error {
  constructor(reasons) {
    super(reasons.join('; '))
    this.name = 'Refused'
    this.reasons = reasons
  }
}

// Only `Verifier` holds the key, so nobody else makes a VerifiedDocument.
const key = Symbol('verified')

class VerifiedDocument {
  constructor(made, content) {
    if (made !== key) throw new TypeError('a VerifiedDocument comes from Verifier.verify')
    Object.assign(this, content, { pcrs: Object.freeze(content.pcrs) })
    for (const name of ['publicKey', 'userData', 'nonce']) this[name] ??= null
    Object.freeze(this)
  }
}

// Texts of a refusal come in one message, separated by U+001E.
function judged(judge) {
  try {
    return judge()
  } catch (error) {
    if (error.code === 'GenericFailure') throw new Refused(error.message.split('\u001e'))
    throw new TypeError(error.message, { cause: error })
  }
}

class Verifier {
  #native

  constructor(options = {}) {
    this.#native = judged(() => new native.NativeVerifier(options))
  }

  verify(document, { nonce, now } = {}) {
    const content = judged(() => this.#native.verify(document, nonce ?? null, now ?? null))
    return new VerifiedDocument(key, content)
  }
}

function lintPolicy(policy, { now } = {}) {
  return judged(() => native.lintPolicy(policy, now ?? null))
}

module.exports = { Refused, VerifiedDocument, Verifier, lintPolicy }
