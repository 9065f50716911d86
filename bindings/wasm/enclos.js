'use strict'

// The other side of the WebAssembly module, for browsers (a plain script, also from file://) and Node.js. Everything that is
// decided is decided in the module; what is here moves bytes.

;(function (give) {
  if (typeof module === 'object' && module.exports) module.exports = give
  else globalThis.Enclos = give
})(
  (() => {
    /** The document was refused; `reasons` has every one, outermost first. */
    class Refused extends Error {
      constructor(reasons) {
        super(reasons.join(': '))
        this.name = 'Refused'
        this.reasons = reasons
      }
    }

    const toHex = (bytes) => Array.from(new Uint8Array(bytes), (byte) => byte.toString(16).padStart(2, '0')).join('')
    const fromHex = (text) => Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16))
    const optional = (value, convert) => (value == null ? null : convert(value))

    /** Starts the module: the bytes of enclos.wasm. It imports nothing, so it can reach nothing. */
    async function load(wasm) {
      const { instance } = await WebAssembly.instantiate(wasm, {})
      const { memory, enclos_input, enclos_output, enclos_verify, enclos_lint } = instance.exports

      function ask(run, request) {
        const bytes = new TextEncoder().encode(JSON.stringify(request))
        const at = enclos_input(bytes.length)
        if (at === 0) throw new TypeError(`the request has ${bytes.length} bytes, which is too long`)
        new Uint8Array(memory.buffer, at, bytes.length).set(bytes)
        const length = run()
        const answer = JSON.parse(new TextDecoder().decode(new Uint8Array(memory.buffer, enclos_output(), length)))
        if (answer.refused) throw new Refused(answer.refused)
        if (answer.misused) throw new TypeError(answer.misused.join(': '))
        return answer
      }

      /**
       * Verifies a document: bytes. Options: `roots` (names to bytes, DER or PEM), `aws`, `pcrs` (numbers to hexadecimal), `policy` (JSON
       * text), `nonce` (bytes), `now` (milliseconds), `maxAgeSeconds`, `archival`, `allowDebug`.
       */
      function verify(document, { roots = {}, nonce, now = Date.now(), ...options } = {}) {
        const hex = Object.entries(roots).map(([name, root]) => [name, toHex(root)])
        const request = { ...options, document: toHex(document), roots: Object.fromEntries(hex), nonce: optional(nonce, toHex), now }
        const { verified } = ask(enclos_verify, request)
        for (const name of ['publicKey', 'userData', 'nonce']) verified[name] = optional(verified[name], fromHex)
        return Object.freeze({ ...verified, pcrs: Object.freeze(verified.pcrs) })
      }

      /** What the linter says of a measurement policy. */
      const lintPolicy = (policy, now = Date.now()) => ask(enclos_lint, { policy, now }).warnings

      return Object.freeze({ verify, lintPolicy })
    }

    return { load, Refused }
  })(),
)
