/** The header row: sorts on a click, and says how the table is sorted. */

import type { Sort } from '../state'
import { visible } from '../visible'
import type { Column } from './columns'
import { Icon } from './Icon'

interface Props {
  readonly columns: readonly Column[]
  readonly metric: string | null
  readonly sort: Sort
  /** Which header is active, by its place; -1: none. */
  readonly active: number
  readonly onSort: (column: Column) => void
}

export function HeaderRow({ columns, metric, sort, active, onSort }: Props) {
  return (
    <div class="headers" role="rowgroup">
      <div class="row header" role="row" aria-rowindex={1}>
        <div role="columnheader" class="cell" aria-colindex={1}><span class="sr-only">selected</span></div>
        {columns.map((column, at) => {
          const by = column.sortBy({ metric })
          const isSorted = by !== null && sort.by === by
          const title = visible(column.title({ metric }))
          return (
            <div key={column.id} id={`header-${column.id}`} role="columnheader" aria-colindex={at + 2}
              class={`cell ${column.isNumeric ? 'numeric' : ''} ${active === at ? 'active' : ''}`}
              aria-sort={isSorted ? (sort.descending ? 'descending' : 'ascending') : by === null ? undefined : 'none'}>
              {by === null ? (
                <span class="clip">{title}</span>
              ) : (
                <button type="button" tabIndex={-1} class="sort" title={`sort by ${title}`} onClick={() => onSort(column)}>
                  <span class="clip">{title}</span>
                  {isSorted && <Icon name={sort.descending ? 'down' : 'up'} size={12} />}
                </button>
              )}
            </div>
          )
        })}
      </div>
    </div>
  )
}
