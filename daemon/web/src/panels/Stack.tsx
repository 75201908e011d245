/** Parts of a whole as one bar, with their numbers. */

import type { ComponentChildren, JSX } from 'preact'

import { formatNumber } from '../format'
import { percent } from './figures'

/** Parts of a whole as one bar, each a button that shows its checkpoints. */
export function Stack(props: {
  parts: readonly { name: string; count: number; look: string; onClick?: () => void; label?: ComponentChildren }[]
}): JSX.Element {
  const parts = props.parts.filter(({ count }) => count > 0)
  const total = parts.reduce((sum, { count }) => sum + count, 0)
  return (
    <>
      <div class="stack" aria-hidden="true">
        {parts.map(({ name, count, look }) => (
          <span key={name} class={look} style={{ flexGrow: count }} />
        ))}
      </div>
      <ul class="legend">
        {parts.map(({ name, count, look, onClick, label }) => (
          <li key={name}>
            <span class={`swatch ${look}`} aria-hidden="true" />{' '}
            {onClick ? (
              <button type="button" class="button link" onClick={onClick}>
                {label ?? name}
              </button>
            ) : (
              (label ?? name)
            )}{' '}
            <strong>{formatNumber(count)}</strong> <span class="muted">{percent(count, total)}</span>
          </li>
        ))}
      </ul>
    </>
  )
}
