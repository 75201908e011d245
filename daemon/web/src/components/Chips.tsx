/** The filters that are on, each as a chip that takes it off again. */

import { useApp } from '../hooks'
import { type Filters, NO_FILTERS, setFilters, update } from '../state'
import { visible } from '../visible'
import { Icon } from './Icon'

interface Chip {
  readonly name: string
  readonly value: string
  readonly without: Partial<Filters>
}

export function Chips() {
  const filters = useApp((state) => state.filters)
  const chips = chipsOf(filters)
  if (!chips.length) return null
  return (
    <ul class="filter-chips" aria-label="filters">
      {chips.map(({ name, value, without }) => (
        <li key={`${name} ${value}`} class="filter-chip">
          <span class="clip" title={visible(value)}><span class="muted">{visible(name)}</span> {visible(value)}</span>
          <button type="button" class="button plain icon" aria-label={`remove the filter ${visible(name)} ${visible(value)}`}
            onClick={() => setFilters(without)}>
            <Icon name="cross" size={10} />
          </button>
        </li>
      ))}
      <li><button type="button" class="button link" onClick={() => update({ filters: NO_FILTERS })}>Clear all</button></li>
    </ul>
  )
}

/** One chip for each filter; the text that was typed is not among them, it stands in the search box. */
export function chipsOf(filters: Filters): readonly Chip[] {
  const chips: Chip[] = []
  const list = (key: 'exp_name' | 'architecture' | 'health' | 'safety', name: string): void => {
    if (filters[key].length) chips.push({ name, value: filters[key].join(', '), without: { [key]: [] } })
  }
  list('exp_name', 'Experiment')
  list('architecture', 'Architecture')
  list('health', 'Health')
  list('safety', 'Safety')
  for (const filter of filters.metrics) {
    const { name, min, max } = filter
    const value = min === null ? `≤ ${max}` : max === null ? `≥ ${min}` : `${min} to ${max}`
    chips.push({ name, value, without: { metrics: filters.metrics.filter((other) => other !== filter) } })
  }
  const { modified_from: from, modified_to: to } = filters
  if (from !== null || to !== null) {
    const value = from === null ? `until ${to}` : to === null ? `since ${from}` : from === to ? from : `${from} to ${to}`
    chips.push({ name: 'Modified', value, without: { modified_from: null, modified_to: null } })
  }
  return chips
}

/** All filters in words, for the sentence that says that nothing matches. */
export function filtersInWords(filters: Filters): string {
  const typed = filters.q.trim() ? [`“${visible(filters.q.trim())}”`] : []
  return [...typed, ...chipsOf(filters).map(({ name, value }) => `${visible(name)} ${visible(value)}`)].join(' and ')
}
