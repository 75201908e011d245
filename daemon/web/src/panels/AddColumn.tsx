/** One more checkpoint for the comparison, found by typing. */

import type { JSX } from 'preact'
import { useId, useRef, useState } from 'preact/hooks'

import { MAX_SELECTED, openCompare } from '../state'
import { store } from '../store'
import { parseSearch, searchText } from '../store/search'
import { clippedName, visible } from '../visible'
import type { Entry } from '../wire'

const OFFERED = 12

export function AddColumn({ ids }: { ids: readonly string[] }): JSX.Element | null {
  const [query, setQuery] = useState('')
  const [at, setAt] = useState(0)
  const input = useRef<HTMLInputElement>(null)
  const listId = useId()
  if (ids.length >= MAX_SELECTED) return null
  const offered = query.trim() ? offersFor(query, ids) : []
  const choose = (entry: Entry | undefined): void => {
    if (!entry) return
    setQuery('')
    openCompare([...ids, entry.id])
  }
  const onKeyDown = (event: KeyboardEvent): void => {
    if (event.key === 'ArrowDown' || event.key === 'ArrowUp') {
      const step = event.key === 'ArrowDown' ? 1 : -1
      setAt((before) => Math.max(0, Math.min(offered.length - 1, before + step)))
    } else if (event.key === 'Enter') choose(offered[at])
    else if (event.key === 'Escape' && query) setQuery('')
    else return
    event.preventDefault()
    event.stopPropagation()
  }
  return (
    <span class="add-column">
      <input
        ref={input}
        class="input"
        role="combobox"
        aria-label="add a checkpoint to the comparison"
        aria-expanded={offered.length > 0}
        aria-controls={listId}
        aria-autocomplete="list"
        aria-activedescendant={offered.length ? `${listId}-${at}` : undefined}
        placeholder="add a checkpoint"
        value={query}
        onInput={(event) => {
          setQuery(event.currentTarget.value)
          setAt(0)
        }}
        onKeyDown={onKeyDown}
        onBlur={() => setQuery('')}
      />
      {/* the focus stays in the box */}
      {/* the box has the keys */}
      <div id={listId} role="listbox" aria-label="checkpoints found" hidden={offered.length === 0}>
        {offered.map((entry, place) => (
          <div
            key={entry.id}
            id={`${listId}-${place}`}
            role="option"
            aria-selected={place === at}
            class={place === at ? 'option current' : 'option'}
            // The box would lose the focus, and with it the list, before the click.
            onMouseDown={(event) => event.preventDefault()}
            onClick={() => choose(entry)}
          >
            <bdi>{visible(clippedName(entry.display_name, 100))}</bdi>{' '}
            <small class="muted">{visible(clippedName(entry.run_id ?? entry.path, 100))}</small>
          </div>
        ))}
      </div>
    </span>
  )
}

/** The newest that match, without those that are there already. */
function offersFor(query: string, ids: readonly string[]): Entry[] {
  const { terms } = parseSearch(query)
  const found: Entry[] = []
  for (const entry of store.all()) {
    if (ids.includes(entry.id)) continue
    const text = searchText(entry)
    if (terms.every(({ holds }) => holds(entry, text))) found.push(entry)
  }
  return found.sort((a, b) => (a.modified_at < b.modified_at ? 1 : -1)).slice(0, OFFERED)
}
