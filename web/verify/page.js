'use strict'

// The form, and the module that cargo xtask wasm puts in as base64.
;(async () => {
  const WASM = '{{enclos.wasm}}'
  const { Enclos, Verdict } = globalThis
  const at = (id) => document.getElementById(id)
  const enclos = await Enclos.load(Verdict.decode(WASM))
  const chosen = (name) => document.querySelector(`input[name=${name}]:checked`).value

  async function file(id) {
    const [first] = at(id).files
    return first ? new Uint8Array(await first.arrayBuffer()) : null
  }

  function show({ kind, title, lines }) {
    const verdict = at('verdict')
    verdict.className = kind
    const heading = document.createElement('strong')
    heading.textContent = title
    const list = document.createElement('ul')
    for (const line of lines) {
      const item = list.appendChild(document.createElement('li'))
      const register = /^PCR\d+ [0-9a-f]+$/.test(line)
      const text = register ? item.appendChild(document.createElement('code')) : item
      text.textContent = line
    }
    verdict.replaceChildren(heading, list)
  }

  async function verify() {
    const policy = await file('policy-file')
    return Verdict.judge(enclos, {
      document: (await file('document-file')) ?? Verdict.decode(at('document').value),
      root: chosen('root'),
      ownRoot: await file('root-file'),
      policy: policy && new TextDecoder().decode(policy),
      pcrs: at('pcrs').value,
      nonce: at('nonce').value.trim(),
      time: chosen('time'),
    })
  }

  at('form').addEventListener('submit', (event) => {
    event.preventDefault()
    verify().catch((error) => ({ kind: 'bad', title: 'Nothing was verified', lines: [error.message] })).then(show)
  })
  // A file before a text: what was pasted earlier must not hide behind it.
  at('document-file').addEventListener('change', () => (at('document').value = ''))
  document.documentElement.dataset.ready = 'yes'
})()
