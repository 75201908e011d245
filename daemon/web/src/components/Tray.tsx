/** The tray: what is selected, and what can be done with it. */

import { useApp } from '../hooks'
import { MAX_SELECTED, openCompare, update } from '../state'

export function Tray() {
  const selected = useApp((state) => state.selected)
  if (!selected.size) return null
  return (
    <section class="tray" aria-label="selection">
      <span>{selected.size} of {MAX_SELECTED} selected</span>
      <button type="button" class="button primary" disabled={selected.size < 2} onClick={() => openCompare([...selected])}
        title={selected.size < 2 ? 'select two to four to compare them' : 'compare them (c)'}>
        Compare
      </button>
      <button type="button" class="button" onClick={() => update({ selected: new Set() })}>Clear</button>
    </section>
  )
}
