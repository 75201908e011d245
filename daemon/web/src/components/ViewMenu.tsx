/** What the reader prefers: columns and their order, the primary metric, sorting, density, theme. */

import { useApp, useObservable } from '../hooks'
import { columnChoices } from '../prefs'
import { type Density, type Theme, update } from '../state'
import { store } from '../store'
import { startsDescending } from '../store/ordering'
import { visible } from '../visible'
import { orderedColumns, shownColumns, sortingId } from './columns'
import { Icon } from './Icon'
import { Popover } from './Popover'
import { useStore } from './useStore'

export function ViewMenu({ metric }: { metric: string | null }) {
  return (
    <Popover name="view" class="button plain" align="end" label={<><Icon name="columns" /> <span class="word">View</span></>}>
      {() => (
        <div class="view-menu">
          <MetricChoice metric={metric} />
          <SortChoice metric={metric} />
          <Appearance />
          <ColumnList metric={metric} />
        </div>
      )}
    </Popover>
  )
}

function MetricChoice({ metric }: { metric: string | null }) {
  useStore()
  const names = store.metrics().slice(0, 1_000)
  const listed = metric === null || names.includes(metric) ? names : [metric, ...names]
  return (
    <label class="field">
      <span>Metric</span>
      <select class="input" value={metric ?? ''} onChange={(event) => update({ metric: event.currentTarget.value || null })}>
        {!listed.length && <option value="">none is known yet</option>}
        {listed.map((name) => <option key={name} value={name}>{visible(name)}</option>)}
      </select>
    </label>
  )
}

/** Also by the headers; where the table is narrow, these are not all there. */
function SortChoice({ metric }: { metric: string | null }) {
  const sort = useApp((state) => state.sort)
  const columns = orderedColumns([]).flatMap(({ column }) => {
    const by = column.sortBy({ metric })
    return by === null ? [] : [{ by, title: column.title({ metric }) }]
  })
  const listed = columns.some(({ by }) => by === sort.by) ? columns : [...columns, { by: sort.by, title: sort.by }]
  return (
    <div class="field">
      <label for="sort-by">Sort by</label>
      <span class="pair">
        <select id="sort-by" class="input" value={sort.by}
          onChange={({ currentTarget: { value } }) => update({ sort: { by: value, descending: startsDescending(value) } })}>
          {listed.map(({ by, title }) => <option key={by} value={by}>{visible(title)}</option>)}
        </select>
        <button type="button" class="button icon" onClick={() => update({ sort: { ...sort, descending: !sort.descending } })}
          aria-label={sort.descending ? 'descending; change to ascending' : 'ascending; change to descending'}>
          <Icon name={sort.descending ? 'down' : 'up'} />
        </button>
      </span>
    </div>
  )
}

const THEMES: readonly Theme[] = ['auto', 'light', 'dark']
const DENSITIES: readonly (readonly [Density, string])[] = [[32, 'compact'], [40, 'roomy']]

function Appearance() {
  const theme = useApp((state) => state.theme)
  const density = useApp((state) => state.density)
  return (
    <>
      <fieldset class="field">
        <legend>Theme</legend>
        <span class="segments">
          {THEMES.map((name) => (
            <button key={name} type="button" class="button" aria-pressed={name === theme} onClick={() => update({ theme: name })}>
              {name}
            </button>
          ))}
        </span>
      </fieldset>
      <fieldset class="field">
        <legend>Rows</legend>
        <span class="segments">
          {DENSITIES.map(([height, name]) => (
            <button key={name} type="button" class="button" aria-pressed={height === density}
              onClick={() => update({ density: height })}>
              {name}
            </button>
          ))}
        </span>
      </fieldset>
    </>
  )
}

function ColumnList({ metric }: { metric: string | null }) {
  const choices = useObservable(columnChoices, (value) => value)
  const sortedId = useApp(({ sort }) => sortingId(sort.by, metric))
  const columns = orderedColumns(choices)
  // The table is as wide as the window.
  const fitting = shownColumns(choices, document.documentElement.clientWidth, sortedId)
  const change = (edit: (list: { id: string; isShown: boolean }[]) => void): void => {
    const list = columns.map(({ column, isShown }) => ({ id: column.id, isShown }))
    edit(list)
    columnChoices.set(list)
  }
  const move = (from: number, to: number): void => change((list) => list.splice(to, 0, ...list.splice(from, 1)))
  return (
    <fieldset>
      <legend>Columns</legend>
      <ul class="options">
        {columns.map(({ column, isShown }, at) => {
          const title = visible(column.title({ metric }))
          return (
            <li key={column.id} class="column-choice">
              <label>
                <input type="checkbox" checked={isShown || column.id === 'display_name'} disabled={column.id === 'display_name'}
                  onChange={() => change((list) => list.splice(at, 1, { id: column.id, isShown: !isShown }))} />
                <span class="clip">{title}</span>
                {isShown && !fitting.includes(column) && <span class="muted" title="the window is too narrow for it">no room</span>}
              </label>
              <button type="button" class="button plain icon" disabled={at === 0} aria-label={`move ${title} to the left`}
                onClick={() => move(at, at - 1)}><Icon name="up" size={12} /></button>
              <button type="button" class="button plain icon" disabled={at === columns.length - 1}
                aria-label={`move ${title} to the right`} onClick={() => move(at, at + 1)}><Icon name="down" size={12} /></button>
            </li>
          )
        })}
      </ul>
      <button type="button" class="button link" onClick={() => columnChoices.set([])}>as by default</button>
    </fieldset>
  )
}
