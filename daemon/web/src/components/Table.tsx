/**
 * The table: a grid of which only the rows on the screen exist. One tab stop; the active row is told to screen readers
 * by `aria-activedescendant`, so that the focus survives whatever is drawn anew.
 */

import { useEffect, useLayoutEffect, useMemo, useReducer, useRef, useState } from 'preact/hooks'

import { useApp, useObservable } from '../hooks'
import { columnChoices } from '../prefs'
import { app, connection, openDetail, toggleSelected, update } from '../state'
import { store } from '../store'
import { startsDescending } from '../store/ordering'
import { OVERSCAN, ratioOf, scrollTo, windowOf } from '../virtual'
import { announce } from '../announce'
import { type Column, NARROW, shownColumns, sortingId, tracksOf } from './columns'
import { HeaderRow } from './HeaderRow'
import { NewRows } from './NewRows'
import { Row } from './Row'
import { type Cursor, moveCursor, type TableCommand } from './cursor'

/** How the rest of the page drives the table. */
export interface TableHandle {
  readonly run: (command: TableCommand) => void
  readonly focus: () => void
}

/** Height of a row of two lines, in CSS pixels: where the table is narrow, a name has no room beside its experiment. */
const NARROW_ROW = 48

/** How far the table was scrolled when it was last on the screen. */
let leftAt = 0

interface Props {
  readonly metric: string | null
  readonly nowMs: number
  readonly handle: { current: TableHandle | null }
}

export function Table({ metric, nowMs, handle }: Props) {
  const [, redraw] = useReducer((count: number) => count + 1, 0)
  const [size, setSize] = useState({ width: innerWidth, height: innerHeight })
  const [scrollTop, setScrollTop] = useState(0)
  const [isFocused, setFocused] = useState(false)
  const [pointed, setPointed] = useState(-1)
  const isNarrow = size.width < NARROW
  const [cursor, setCursor] = useState<Cursor>({ row: 0, column: 0 })
  const activeId = useRef<string | null>(null)
  const topId = useRef<string | null>(null)
  const scroller = useRef<HTMLDivElement>(null)
  const drawn = useRef({ rowHeight: 0, scrollTop: 0 })
  const density = useApp((state) => state.density)
  const sort = useApp((state) => state.sort)
  const selected = useApp((state) => state.selected)
  const detailId = useApp((state) => state.detailId)
  const choices = useObservable(columnChoices, (value) => value)
  const isLive = useObservable(connection, ({ status }) => status !== 'loading')
  // The same list as long as it says the same: rows that get another one are drawn anew.
  const sortedId = sortingId(sort.by, metric)
  const columns = useMemo(() => shownColumns(choices, size.width, sortedId), [choices, size.width, sortedId])
  const { tracks, least } = tracksOf(columns, size.width)
  const rowHeight = isNarrow ? NARROW_ROW : density
  const viewport = Math.max(rowHeight, size.height - density)
  const count = store.length
  const { first, end, offset, height } = windowOf(scrollTop, viewport, count, rowHeight)
  topId.current = store.at(Math.round((scrollTop * ratioOf(viewport, count, rowHeight)) / rowHeight))?.id ?? null

  useLayoutEffect(() => {
    const element = scroller.current
    if (!element) return
    const observer = new ResizeObserver(() => setSize({ width: element.clientWidth, height: element.clientHeight }))
    observer.observe(element)
    element.scrollTop = leftAt // whoever comes back from another view finds the table as it was
    return () => observer.disconnect()
  }, [])

  useLayoutEffect(() => {
    const { rowHeight: before, scrollTop: top } = drawn.current
    drawn.current = { rowHeight, scrollTop }
    // Rows of another height: those that were on the screen stay there.
    if (scroller.current && before && before !== rowHeight) scroller.current.scrollTop = (top * rowHeight) / before
  }, [rowHeight, scrollTop])

  const isHeld = isLive && (scrollTop > 0 || isFocused)
  useEffect(() => {
    store.held = isHeld
  }, [isHeld])
  useEffect(
    () => () => {
      store.held = false // nobody looks
    },
    [],
  )

  useEffect(
    () =>
      store.onChange(({ isAsked }) => {
        const element = scroller.current
        if (element && isAsked) element.scrollTop = 0
        else if (element && element.scrollTop > 0) keepInPlace(element, topId.current, viewport, rowHeight)
        if (activeId.current !== null) followActive(activeId.current, setCursor)
        redraw(undefined)
      }),
    [rowHeight, viewport],
  )

  const rows = Array.from({ length: end - first }, (_, at) => first + at)
  // Elements are used again for other rows, in turn: to make and drop them costs most of a frame.
  const pool = Math.ceil(viewport / rowHeight) + 2 * OVERSCAN + 2
  // The active row is drawn wherever it is: the grid points to it.
  if (cursor.row >= 0 && cursor.row < count && (cursor.row < first || cursor.row >= end)) rows.push(cursor.row)

  const moveTo = (next: Cursor): void => {
    setCursor(next)
    activeId.current = store.at(next.row)?.id ?? null
    const element = scroller.current
    if (!element || next.row < 0) return
    element.scrollTop = scrollTo(next.row, element.scrollTop, viewport, count, rowHeight)
  }

  handle.current = {
    focus: () => scroller.current?.focus({ preventScroll: true }),
    run: (command) => {
      if (command === 'open' && cursor.row < 0) sortBy(columns[cursor.column], metric)
      else if (command === 'open') openRow(cursor.row)
      else if (command === 'select') select(cursor.row)
      else moveTo(moveCursor(cursor, command, { rows: count, columns: columns.length, page: Math.floor(viewport / rowHeight) - 1 }))
    },
  }

  const onClick = (event: MouseEvent, index: number): void => {
    const entry = store.at(index)
    if (!entry || getSelection()?.toString()) return // a text was marked, to be copied
    setCursor({ row: index, column: cursor.column })
    activeId.current = entry.id
    if (event.shiftKey || event.ctrlKey || event.metaKey) select(index)
    else openDetail(entry.id)
  }

  return (
    <div class={isNarrow ? 'table narrow' : 'table'}>
      <NewRows onShow={() => scroller.current && (scroller.current.scrollTop = 0)} />
      <div class="scroller" ref={scroller} role="grid" tabIndex={0} aria-label="checkpoints"
        aria-rowcount={count + 1} aria-colcount={columns.length + 1} aria-multiselectable="true"
        aria-activedescendant={activeElement(cursor, columns, count)}
        onScroll={(event) => setScrollTop((leftAt = event.currentTarget.scrollTop))}
        onMouseDown={keepFocus} onFocus={() => setFocused(true)} onBlur={() => setFocused(false)}>
        <div class="lanes" style={{ '--tracks': tracks, minWidth: `${least}px` }} role="presentation">
          <HeaderRow columns={columns} metric={metric} sort={sort} active={isFocused && cursor.row < 0 ? cursor.column : -1}
            onSort={(column) => sortBy(column, metric)} />
          <div class="rows" style={{ height: `${height}px` }} role="rowgroup" onMouseLeave={() => setPointed(-1)}
            onMouseOver={(event) => setPointed(rowAt(event.target))}>
            {rows.map((index) => {
              const entry = store.at(index)
              if (!entry) return null
              const isGone = store.isGoneAt(index)
              return (
                <Row key={index < first || index >= end ? 'active' : index % pool} entry={entry} index={index} columns={columns} metric={metric}
                  nowMs={nowMs} top={offset + (index - first) * rowHeight} isActive={isFocused && index === cursor.row}
                  isPointed={index === pointed || (isFocused && index === cursor.row)}
                  isSelected={selected.has(entry.id)} isOpen={entry.id === detailId} isGone={isGone}
                  change={store.recentChange(entry.id)} onClick={onClick} onSelect={select} />
              )
            })}
          </div>
        </div>
      </div>
    </div>
  )
}

function rowAt(target: EventTarget | null): number {
  const row = target instanceof Element ? target.closest('[role="row"]') : null
  return Number(row?.getAttribute('aria-rowindex') ?? 1) - 2
}

/** The grid is the one stop of the keyboard: a click on what is in it does not take the focus away. */
function keepFocus(event: MouseEvent & { currentTarget: HTMLElement }): void {
  if (!(event.target instanceof Element) || !event.target.closest('button, input')) return
  event.preventDefault()
  event.currentTarget.focus({ preventScroll: true })
}

/** Scroll along with the row that was at the top, when others came or went above it. */
function keepInPlace(element: HTMLElement, id: string | null, viewport: number, rowHeight: number): void {
  const index = id === null ? -1 : store.indexOf(id)
  if (index < 0) return
  const ratio = ratioOf(viewport, store.length, rowHeight)
  const before = Math.round((element.scrollTop * ratio) / rowHeight)
  if (index !== before) element.scrollTop += ((index - before) * rowHeight) / ratio
}

function followActive(id: string, setCursor: (change: (cursor: Cursor) => Cursor) => void): void {
  const index = store.indexOf(id)
  setCursor((cursor) => {
    const row = index >= 0 ? index : Math.min(cursor.row, store.length - 1)
    return row === cursor.row || cursor.row < 0 ? cursor : { ...cursor, row: Math.max(0, row) }
  })
}

function activeElement(cursor: Cursor, columns: readonly Column[], count: number): string | undefined {
  if (cursor.row < 0) return `header-${columns[cursor.column]?.id}`
  return cursor.row < count ? `row-${store.at(cursor.row)?.id}` : undefined
}

function openRow(index: number): void {
  const entry = store.at(index)
  if (entry) openDetail(entry.id)
}

function select(index: number): void {
  const entry = store.at(index)
  if (!entry || store.isGoneAt(index)) return
  if (!toggleSelected(entry.id)) announce('four are selected, more cannot be compared')
  else announce(app.get().selected.has(entry.id) ? 'selected' : 'no longer selected')
}

function sortBy(column: Column | undefined, metric: string | null): void {
  const by = column?.sortBy({ metric })
  if (by === undefined || by === null) return
  const { sort } = app.get()
  const descending = sort.by === by ? !sort.descending : startsDescending(by)
  update({ sort: { by, descending } })
  announce(`sorted by ${column?.title({ metric })}, ${descending ? 'descending' : 'ascending'}`)
}
