/** The list of keys. */

import type { JSX } from 'preact'
import { useEffect, useRef } from 'preact/hooks'

import { KEYS } from '../keys'

const KEY_WORDS: Readonly<Record<string, string>> = {
  ' ': 'Space',
  ArrowDown: '↓',
  ArrowUp: '↑',
  ArrowLeft: '←',
  ArrowRight: '→',
  Escape: 'Esc',
  PageDown: 'Page ↓',
  PageUp: 'Page ↑',
}
const IN_PANELS: readonly { readonly keys: readonly string[]; readonly does: string }[] = [
  { keys: ['ArrowRight', 'ArrowLeft'], does: 'in trees and tensors: open, close' },
  { keys: ['ArrowLeft', 'ArrowRight'], does: 'on the details’ edge: wider, narrower; on its tabs: the next one' },
]

export function Help({ onClose }: { onClose: () => void }): JSX.Element {
  const dialog = useRef<HTMLDialogElement>(null)
  useEffect(() => {
    const element = dialog.current
    // Modal: the browser keeps the focus inside, gives it back afterwards, and closes at Escape.
    element?.showModal()
    return () => element?.close()
  }, [])
  return (
    <dialog
      ref={dialog}
      class="dialog help"
      aria-labelledby="help-title"
      onClose={onClose}
      onClick={(event) => event.target === dialog.current && dialog.current?.close()}
      onKeyDown={(event) => event.key === '?' && dialog.current?.close()}
    >
      <h2 id="help-title">Keys</h2>
      <dl class="keys">
        {[...KEYS, ...IN_PANELS].map(({ keys, does }) => (
          <div key={does}>
            <dt>
              {keys.map((key) => (
                <kbd key={key}>{KEY_WORDS[key] ?? key}</kbd>
              ))}
            </dt>
            <dd>{does}</dd>
          </div>
        ))}
      </dl>
      <form method="dialog">
        <button type="submit" class="button primary">
          Close
        </button>
      </form>
    </dialog>
  )
}
