'use strict'

// From what is on the form to a verdict in plain words. No document object: node tests it.

;(function (give) {
  if (typeof module === 'object' && module.exports) module.exports = give
  else globalThis.Verdict = give
})(
  (() => {
    /** What one's own root is called in the verifier. It never is the name of AWS's. */
    const OWN = 'own'

    /** Bytes of base64, base64url or hexadecimal text. */
    function decode(text) {
      const packed = text.replace(/\s+/g, '')
      if (/^([0-9a-f]{2})*$/i.test(packed)) return Uint8Array.from(packed.match(/../g) ?? [], (pair) => parseInt(pair, 16))
      const plain = packed.replace(/-/g, '+').replace(/_/g, '/')
      try {
        return Uint8Array.from(atob(plain), (char) => char.charCodeAt(0))
      } catch {
        throw new TypeError('the text is neither base64 nor hexadecimal')
      }
    }

    /** `0 = …` lines. */
    function registers(text) {
      const pcrs = {}
      for (const line of text.split('\n').map((line) => line.trim()).filter(Boolean)) {
        const found = /^(?:PCR)?\s*(\d{1,2})"?\s*[=:,\s]\s*"?([0-9a-f]{96})"?,?$/i.exec(line.replace(/^"/, ''))
        if (!found) throw new TypeError(`not a register: ${line.slice(0, 40)}; expected a number and 96 hexadecimal digits`)
        if (found[1] in pcrs) throw new TypeError(`PCR${found[1]} is given twice`)
        pcrs[found[1]] = found[2].toLowerCase()
      }
      return pcrs
    }

    /** Verifies, and says what came of it: `{ kind: 'good' | 'warn' | 'bad', title, lines }`. */
    function judge(enclos, form, now = Date.now()) {
      const bad = (title, lines) => ({ kind: 'bad', title, lines })
      try {
        const aws = form.root === 'aws'
        if (!aws && !form.ownRoot) return bad('No root was chosen', ['Choose the root of your installation, or AWS.'])
        if (!form.document?.length) return bad('There is no document', ['Choose a file, or paste it.'])
        const pcrs = registers(form.pcrs ?? '')
        const archival = form.time === 'own'
        const document = enclos.verify(form.document, {
          aws,
          roots: aws ? {} : { [OWN]: form.ownRoot },
          pcrs,
          policy: form.policy || null,
          nonce: form.nonce ? decode(form.nonce) : null,
          archival,
          now,
        })
        return accepted(document, { aws, archival, judged: Boolean(form.policy) || Object.keys(pcrs).length > 0, nonce: Boolean(form.nonce) })
      } catch (error) {
        if (error.name === 'Refused') return bad('Refused: do not trust this enclave', error.reasons)
        return bad('Nothing was verified', [error.message])
      }
    }

    function accepted(document, { aws, archival, judged, nonce }) {
      // The module names the root that it found at the end of the chain; anything else than what was asked for is a fault.
      if (document.root !== (aws ? 'aws' : OWN)) throw new Error(`the verifier names the root ${document.root}, which was not asked for`)
      const lines = [
        aws
          ? "Signed under AWS's Nitro Enclaves root: AWS's hypervisor vouches, and keeps out the host's administrator."
          : 'Signed under the root that you chose, not by AWS: whoever holds its key, and the root user of the host, could have made this document.',
        `Made ${new Date(document.timestamp).toISOString()} by ${document.moduleId}.`,
      ]
      if (archival) lines.push('Judged at its own time: this says what was, not what runs now.')
      if (!nonce) lines.push('Without a nonce somebody may show you the document of another conversation.')
      if (!judged) lines.push('You did not say what may run: this is an enclave, perhaps not the one that you mean. Compare the registers below.')
      const pcrs = Object.entries(document.pcrs).filter(([, value]) => !/^0+$/.test(value))
      lines.push(...pcrs.map(([index, value]) => `PCR${index} ${value}`))
      const title = judged ? 'Verified: it is the enclave that you described' : 'The signature holds; what runs there was not checked'
      return { kind: judged && !archival ? 'good' : 'warn', title, lines }
    }

    return { decode, judge, registers }
  })(),
)
