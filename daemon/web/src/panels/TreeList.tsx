/** A long list of rows that fold, of which only those on the screen exist; one tab stop, keys as WAI-ARIA has them for trees. */

import type { JSX } from 'preact'
import { useEffect, useId, useLayoutEffect, useRef, useState } from 'preact/hooks'

import { scrollTo, windowOf } from '../virtual'

export interface ListRow {
  readonly id: string
  readonly depth: number
  /** Null: nothing to open. */
  readonly isOpen: boolean | null
  /** Its place among its siblings, from 1, and their number; absent: not told. */
  readonly position?: number
  readonly siblings?: number
}

interface Props<T extends ListRow> {
  readonly label: string
  readonly role: 'tree' | 'treegrid'
  readonly rows: readonly T[]
  readonly rowHeight: number
  readonly columns?: number
  readonly current: string | null
  readonly onCurrent: (row: T) => void
  readonly onToggle: (row: T) => void
  readonly draw: (row: T) => JSX.Element
  /** Above the rows, of a grid: one row of column headers. */
  readonly head?: JSX.Element
}

/** Rows in a scrolled box. The focus stays with the box (`aria-activedescendant`), so that it survives any recycling. */
export function TreeList<T extends ListRow>(props: Props<T>): JSX.Element {
  const { rows, rowHeight, current, role } = props
  const box = useRef<HTMLDivElement>(null)
  const [view, setView] = useState({ top: 0, height: 400 })
  const prefix = useId()
  const at = rows.findIndex(({ id }) => id === current)
  const { first, end, offset, height } = windowOf(view.top, view.height, rows.length, rowHeight)

  useEffect(() => {
    const element = box.current
    if (!element) return
    const measured = new ResizeObserver(() => setView((before) => ({ ...before, height: element.clientHeight })))
    measured.observe(element)
    return () => measured.disconnect()
  }, [])
  // oxlint-disable-next-line react-hooks/exhaustive-deps -- after each drawing; the state it sets is the browser's
  useLayoutEffect(() => {
    // Fewer rows than before: the browser has moved the scroll position, and no event says so in time.
    const top = box.current?.scrollTop ?? 0
    if (top !== view.top) setView((before) => ({ ...before, top }))
  })

  const go = (index: number): void => {
    const row = rows[Math.max(0, Math.min(rows.length - 1, index))]
    if (!row || !box.current) return
    props.onCurrent(row)
    box.current.scrollTop = scrollTo(rows.indexOf(row), box.current.scrollTop, view.height, rows.length, rowHeight)
  }
  const onKeyDown = (event: KeyboardEvent): void => {
    const action = actionOf(event, rows, at, Math.max(1, Math.floor(view.height / rowHeight) - 1))
    if (action === null) return
    event.preventDefault()
    event.stopPropagation()
    if (action === 'toggle') props.onToggle(rows[at] as T)
    else go(action)
  }
  return (
    <div class="tree-list">
      {props.head}
      <div
        ref={box}
        class="tree-box"
        role={role}
        aria-label={props.label}
        aria-activedescendant={at >= first && at < end ? `${prefix}-${at}` : undefined}
        aria-rowcount={role === 'treegrid' ? rows.length : undefined}
        aria-colcount={role === 'treegrid' ? props.columns : undefined}
        tabIndex={0}
        onKeyDown={onKeyDown}
        onFocus={() => at < 0 && rows[0] && props.onCurrent(rows[0])}
        onScroll={(event) => setView({ top: event.currentTarget.scrollTop, height: event.currentTarget.clientHeight })}
      >
        <div role="presentation" class="tree-space" style={{ height: `${height}px` }}>
          {rows.slice(first, end).map((row, place) => (
            // the focus stays with the tree
            <div
              key={row.id}
              id={`${prefix}-${first + place}`}
              role={role === 'tree' ? 'treeitem' : 'row'}
              class={first + place === at ? 'tree-row current' : 'tree-row'}
              aria-level={row.depth + 1}
              aria-expanded={row.isOpen ?? undefined}
              aria-selected={first + place === at}
              aria-rowindex={role === 'treegrid' ? first + place + 1 : undefined}
              aria-posinset={row.position}
              aria-setsize={row.siblings}
              style={{
                transform: `translateY(${offset + place * rowHeight}px)`,
                height: `${rowHeight}px`,
                '--depth': Math.min(row.depth, 12),
              }}
              onClick={() => {
                props.onCurrent(row)
                if (row.isOpen !== null) props.onToggle(row)
              }}
            >
              {props.draw(row)}
            </div>
          ))}
        </div>
      </div>
    </div>
  )
}

/** What a key asks for: the index of a row to go to, or to open or close the one that is current. */
export function actionOf(
  event: Pick<KeyboardEvent, 'key' | 'altKey' | 'ctrlKey' | 'metaKey'>,
  rows: readonly ListRow[],
  at: number,
  page: number,
): number | 'toggle' | null {
  if (event.altKey || event.ctrlKey || event.metaKey) return null
  const row = rows[at]
  switch (event.key) {
    case 'ArrowDown':
      return at + 1
    case 'ArrowUp':
      return at - 1
    case 'PageDown':
      return at + page
    case 'PageUp':
      return at - page
    case 'Home':
      return 0
    case 'End':
      return rows.length - 1
    case 'ArrowRight':
      if (!row || row.isOpen === null) return at
      return row.isOpen ? at + 1 : 'toggle'
    case 'ArrowLeft':
      if (row?.isOpen) return 'toggle'
      return parentOf(rows, at)
    case 'Enter':
    case ' ':
      return row && row.isOpen !== null ? 'toggle' : at
    default:
      return null
  }
}

function parentOf(rows: readonly ListRow[], at: number): number {
  const depth = rows[at]?.depth ?? 0
  let above = at
  while (above > 0 && (rows[above]?.depth ?? 0) >= depth) above -= 1
  return depth === 0 ? at : above
}
