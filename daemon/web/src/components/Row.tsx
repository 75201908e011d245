/** One row of the table. Drawn anew only when something of it changes. */

import { memo } from '../memo'
import type { RecentChange } from '../store/changes'
import type { Entry } from '../wire'
import { cellText } from '../format'
import type { Column } from './columns'

interface Props {
  readonly entry: Entry
  readonly index: number
  readonly columns: readonly Column[]
  readonly metric: string | null
  readonly nowMs: number
  /** Pixels from the top of the list. */
  readonly top: number
  readonly isActive: boolean
  readonly isPointed: boolean
  readonly isSelected: boolean
  /** Its details are shown. */
  readonly isOpen: boolean
  readonly isGone: boolean
  readonly change: RecentChange | undefined
  readonly onClick: (event: MouseEvent, index: number) => void
  readonly onSelect: (index: number) => void
}

export const Row = memo(function Row(props: Props) {
  const { entry, index, columns, metric, nowMs, isActive, isSelected, isOpen, isGone, change } = props
  const look = [isActive && 'active', isSelected && 'selected', isOpen && 'open', isGone && 'gone']
  const hasExperiment = columns.some(({ id }) => id === 'exp_name')
  const isNew = change?.fields.has('*') ?? false
  return (
    <div id={`row-${entry.id}`} role="row" aria-rowindex={index + 2} aria-selected={isSelected}
      class={`row ${look.filter(Boolean).join(' ')} ${isNew ? 'changed' : ''}`}
      style={{ transform: `translateY(${props.top}px)` }} onClick={(event) => props.onClick(event, index)}>
      <div role="gridcell" class="cell tick" aria-colindex={1} onClick={(event) => event.stopPropagation()}>
        <input type="checkbox" tabIndex={-1} checked={isSelected} disabled={isGone}
          aria-label={`select ${cellText(entry.display_name)}`}
          onChange={(event) => {
            props.onSelect(index)
            event.currentTarget.checked = isSelected // the state decides: a fifth is refused
          }} />
      </div>
      {columns.map((column, at) => {
        const isChanged = !isNew && change !== undefined && column.fields({ metric }).some((field) => change.fields.has(field))
        return (
          // A changed cell is a new element, so that its tint begins anew.
          <div key={isChanged ? `${column.id}@${change.until}` : column.id} role="gridcell" aria-colindex={at + 2}
            class={`cell ${column.isNumeric ? 'numeric' : ''} ${isChanged ? 'changed' : ''}`}>
            {column.cell(entry, { metric, nowMs, hasExperiment, isPointed: props.isPointed })}
          </div>
        )
      })}
    </div>
  )
})
