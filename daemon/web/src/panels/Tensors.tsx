/** The tensor table of one checkpoint: searched, sorted, grouped by module, with bars of their sizes. */

import type { JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'

import { fetchTensors } from '../api'
import type { TensorInfo } from '../answers'
import { formatBytes, formatNumber } from '../format'
import { clipped, visible } from '../visible'
import { CopyButton, Failure, Text, useRequest } from './parts'
import { flatRows, groupedRows, groupsOf, matchingTensors, type TensorGroup, type TensorSort, type TensorTreeRow } from './tensor-rows'
import { type ListRow, TreeList } from './TreeList'

const ROW_HEIGHT = 26
/** Groups of a table with so many tensors are closed below their second level at first. */
const MANY = 60

type Row = ListRow & { readonly row: TensorTreeRow; readonly share: number }

export function Tensors(props: { id: string; version: unknown }): JSX.Element {
  const [progress, setProgress] = useState<{ done: number; total: number } | null>(null)
  const loaded = useRequest(props.id, props.version, (signal) =>
    fetchTensors(props.id, signal, (tensors, total) => setProgress({ done: tensors.length, total })),
  )
  if (loaded.value === null) {
    if (loaded.error) return <Failure error={loaded.error} onRetry={loaded.reload} />
    const done = progress ? ` ${formatNumber(progress.done)} of ${formatNumber(progress.total)}` : '…'
    return (
      <p class="muted" role="status">
        loading tensors{done}
      </p>
    )
  }
  if (loaded.value.length === 0)
    return <p class="muted">no tensors are known of it: it could not be read, or only its sidecar was</p>
  return <Table key={props.id} tensors={loaded.value} />
}

function Table({ tensors }: { tensors: readonly TensorInfo[] }): JSX.Element {
  const [query, setQuery] = useState('')
  const [sort, setSort] = useState<TensorSort>('order')
  const [isGrouped, setGrouped] = useState(true)
  const [toggledIds, setToggled] = useState<ReadonlySet<string>>(new Set())
  const [current, setCurrent] = useState<string | null>(null)
  const matching = useMemo(() => matchingTensors(tensors, query), [tensors, query])
  // A search opens everything that it left; else the modules of the weights are what one looks for.
  const isAllOpen = query.trim() !== '' || tensors.length <= MANY
  const rows = useMemo(() => {
    const isOpen = (group: TensorGroup): boolean => isOpenAtFirst(group, isAllOpen) !== toggledIds.has(group.id)
    const drawn = isGrouped ? groupedRows(matching, sort, isOpen) : flatRows(matching, sort)
    const largest = matching.reduce((most, { nbytes }) => Math.max(most, nbytes), 1)
    return drawn.map(
      (row): Row => ({
        id: row.id,
        depth: row.depth,
        isOpen: row.kind === 'group' ? isOpen(row) : null,
        row,
        share: row.kind === 'tensor' ? row.nbytes / largest : 0,
      }),
    )
  }, [matching, sort, isGrouped, toggledIds, isAllOpen])
  const total = useMemo(() => matching.reduce((sum, { nbytes }) => sum + nbytes, 0), [matching])
  const chosen = rows.find(({ id }) => id === current)?.row
  const setAll = (isOpen: boolean): void =>
    setToggled(new Set(groupsOf(matching).filter((group) => isOpenAtFirst(group, isAllOpen) !== isOpen).map(({ id }) => id)))
  return (
    <div class="tensors">
      <div class="tool-row">
        <input
          class="input"
          type="search"
          aria-label="search tensors by name"
          placeholder="encoder weight"
          value={query}
          onInput={(event) => {
            setQuery(event.currentTarget.value)
            setToggled(new Set())
          }}
        />
        <label>
          sort{' '}
          <select class="input" value={sort} onChange={(event) => setSort(event.currentTarget.value as TensorSort)}>
            <option value="order">as saved</option>
            <option value="name">by name</option>
            <option value="size">largest first</option>
          </select>
        </label>
        <label>
          <input type="checkbox" checked={isGrouped} onChange={(event) => setGrouped(event.currentTarget.checked)} /> by
          module
        </label>
        {isGrouped && (
          <>
            <button type="button" class="button" onClick={() => setAll(true)}>
              open all
            </button>
            <button type="button" class="button" onClick={() => setAll(false)}>
              close all
            </button>
          </>
        )}
      </div>
      <p class="muted" role="status">
        {matching.length === tensors.length ? '' : `${formatNumber(matching.length)} of `}
        {formatNumber(tensors.length)} tensors, {formatBytes(total)}
      </p>
      <TreeList<Row>
        label="tensors"
        role="treegrid"
        rows={rows}
        rowHeight={ROW_HEIGHT}
        columns={4}
        current={current}
        onCurrent={({ id }) => setCurrent(id)}
        onToggle={({ id }) => setToggled(flipped(toggledIds, id))}
        draw={drawRow}
        head={
          <div class="tensor-head" aria-hidden="true">
            <span>tensor</span>
            <span>shape</span>
            <span>type</span>
            <span>size</span>
          </div>
        }
      />
      {chosen?.kind === 'tensor' && <Chosen tensor={chosen.tensor} />}
    </div>
  )
}

function drawRow({ row, isOpen, share }: Row): JSX.Element {
  const tensor = row.kind === 'tensor' ? row.tensor : null
  return (
    <>
      {/* the focus stays with the grid */}
      <span role="gridcell" class="tensor-name">
        <span class="fold" aria-hidden="true">
          {isOpen === null ? '' : isOpen ? '▾' : '▸'}
        </span>
        <Label text={row.label} />
      </span>
      <span role="gridcell" class="tensor-shape">
        {tensor ? shapeText(tensor.shape) : <span class="muted">{row.kind === 'group' && countText(row.count)}</span>}
      </span>
      <span role="gridcell" class="tensor-type">
        {tensor ? tensor.dtype : ''}
      </span>
      <span role="gridcell" class="tensor-size">
        {tensor && <span class="bar" aria-hidden="true" style={{ width: `${Math.max(share * 100, 1)}%` }} />}
        <span>{formatBytes(row.nbytes)}</span>
      </span>
    </>
  )
}

/** Where there is no room, the beginning of a name gives way: names begin alike and end differently. */
function Label({ text }: { text: string }): JSX.Element {
  const shown = visible(clipped(text, 400))
  const at = shown.lastIndexOf('.', shown.lastIndexOf('.') - 1)
  const isSplit = at > 0 && shown.length - at < 60
  return (
    <bdi class="ends">
      {isSplit && <span>{shown.slice(0, at)}</span>}
      <span>{isSplit ? shown.slice(at) : shown}</span>
    </bdi>
  )
}

function Chosen({ tensor }: { tensor: TensorInfo }): JSX.Element {
  return (
    <div class="chosen">
      <div>
        <code>
          <Text value={tensor.name} />
        </code>
        <CopyButton text={tensor.name} what="name of the tensor" label="name" />
      </div>
      <div class="chosen-value">
        {tensor.dtype} {shapeText(tensor.shape)} · {formatNumber(tensor.nbytes)} bytes · {visible(tensor.role)}
      </div>
    </div>
  )
}

/** `64 × 3 × 7 × 7`; a tensor without dimensions is a scalar. */
function shapeText(shape: readonly number[]): string {
  return shape.length ? shape.join(' × ') : 'scalar'
}

function countText(count: number): string {
  return `${formatNumber(count)} tensor${count === 1 ? '' : 's'}`
}

function isOpenAtFirst({ depth, role }: TensorGroup, isAllOpen: boolean): boolean {
  return isAllOpen || (role === 'weights' && depth < 2)
}

function flipped(ids: ReadonlySet<string>, id: string): ReadonlySet<string> {
  const next = new Set(ids)
  if (!next.delete(id)) next.add(id)
  return next
}
