/** The filter menu: each filter by its type, applied at once. */

import { useState } from 'preact/hooks'

import { formatNumber } from '../format'
import { useApp } from '../hooks'
import { type Filters, setFilters } from '../state'
import { store } from '../store'
import type { Facet } from '../store/filters'
import { visible } from '../visible'
import type { Health, Safety } from '../wire'
import { Icon } from './Icon'
import { Popover } from './Popover'
import { useStore } from './useStore'

const SECTIONS = [
  ['exp_name', 'Experiment'],
  ['architecture', 'Architecture'],
  ['health', 'Health'],
  ['safety', 'Safety'],
  ['metrics', 'Metric'],
  ['modified', 'Modified'],
] as const

type Section = (typeof SECTIONS)[number][0]

export function FilterMenu() {
  const [section, setSection] = useState<Section>('exp_name')
  return (
    <Popover name="filter" label={<><Icon name="filter" /> <span class="word">Filter</span></>}>
      {() => (
        <div class="filter-menu">
          <ul class="sections" aria-label="filter by">
            {SECTIONS.map(([id, title]) => (
              <li key={id}>
                <button type="button" class="button plain" aria-pressed={id === section} onClick={() => setSection(id)}>
                  {title}
                </button>
              </li>
            ))}
          </ul>
          <div class="editor">
            {section === 'metrics' ? <MetricEditor /> : section === 'modified' ? <DateEditor /> : <FacetEditor key={section} facet={section} />}
          </div>
        </div>
      )}
    </Popover>
  )
}

/** Values that the list shows; more are found by typing. */
const LISTED = 200

function FacetEditor({ facet }: { facet: Facet }) {
  useStore()
  const chosen: readonly string[] = useApp((state) => state.filters[facet])
  const [text, setText] = useState('')
  const values = store.facet(facet)
  const isLong = values.length > 8
  const wanted = text.toLowerCase()
  const found = wanted ? values.filter(([value]) => value.toLowerCase().includes(wanted)) : values
  const toggle = (value: string): void => {
    const next = chosen.includes(value) ? chosen.filter((other) => other !== value) : [...chosen, value]
    setFilters(patchOf(facet, next))
  }
  const title = SECTIONS.find(([id]) => id === facet)?.[1] ?? facet
  return (
    <fieldset>
      <legend class="sr-only">{title}</legend>
      {isLong && (
        <input class="input" type="search" placeholder={`Find among ${formatNumber(values.length)}`} value={text}
          aria-label={`find: ${title}`} onInput={(event) => setText(event.currentTarget.value)} />
      )}
      <ul class="options">
        {found.slice(0, LISTED).map(([value, count]) => (
          <li key={value}>
            <label>
              <input type="checkbox" checked={chosen.includes(value)} onChange={() => toggle(value)} />
              <span class="clip" title={visible(value)}>{visible(value)}</span>
              <span class="numeric muted">{formatNumber(count)}</span>
            </label>
          </li>
        ))}
      </ul>
      {found.length > LISTED && <p class="muted">{formatNumber(found.length - LISTED)} more: type to find them</p>}
      {found.length === 0 && <p class="muted">{values.length ? 'none is called so' : 'none is known yet'}</p>}
    </fieldset>
  )
}

function patchOf(facet: Facet, values: readonly string[]): Partial<Filters> {
  if (facet === 'health') return { health: values as readonly Health[] }
  if (facet === 'safety') return { safety: values as readonly Safety[] }
  return { [facet]: values }
}

function MetricEditor() {
  useStore()
  const filters = useApp((state) => state.filters.metrics)
  const names = store.metrics()
  const [name, setName] = useState(filters[0]?.name ?? store.usualMetric() ?? '')
  const current = filters.find((filter) => filter.name === name) ?? { name, min: null, max: null }
  const change = (bound: 'min' | 'max', text: string): void => {
    const value = text.trim() === '' || !Number.isFinite(Number(text)) ? null : Number(text)
    const next = { ...current, [bound]: value }
    const others = filters.filter((filter) => filter.name !== name)
    setFilters({ metrics: next.min === null && next.max === null ? others : [...others, next] })
  }
  if (!names.length) return <p class="muted">no checkpoint has metrics yet</p>
  return (
    <fieldset class="fields">
      <legend class="sr-only">Metric</legend>
      <label>
        <span>Metric</span>
        <select class="input" value={name} onChange={(event) => setName(event.currentTarget.value)}>
          {names.slice(0, 1_000).map((metric) => <option key={metric} value={metric}>{visible(metric)}</option>)}
        </select>
      </label>
      {(['min', 'max'] as const).map((bound) => (
        <label key={`${bound} ${name}`}>
          <span>{bound === 'min' ? 'At least' : 'At most'}</span>
          <input class="input" type="number" step="any" value={current[bound] ?? ''}
            onInput={(event) => change(bound, event.currentTarget.value)} />
        </label>
      ))}
    </fieldset>
  )
}

function DateEditor() {
  const from = useApp((state) => state.filters.modified_from)
  const to = useApp((state) => state.filters.modified_to)
  return (
    <fieldset class="fields">
      <legend class="sr-only">Modified</legend>
      <label>
        <span>From</span>
        <input class="input" type="date" value={from ?? ''}
          onInput={(event) => setFilters({ modified_from: event.currentTarget.value || null })} />
      </label>
      <label>
        <span>To</span>
        <input class="input" type="date" value={to ?? ''}
          onInput={(event) => setFilters({ modified_to: event.currentTarget.value || null })} />
      </label>
      <p class="muted">days in UTC, both included</p>
    </fieldset>
  )
}
