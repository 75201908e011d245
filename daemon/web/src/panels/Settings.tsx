/** Hyper-parameters or a config as a tree: folded, searched, and copied piece by piece. */

import type { JSX } from 'preact'
import { useMemo, useState } from 'preact/hooks'

import type { Plain } from '../answers'
import { formatNumber } from '../format'
import { clipped, visible } from '../visible'
import { CopyButton, Text } from './parts'
import { countMatches, flattenTree, foldedBelow, type TreeNode, valueText, visibleNodes } from './tree'
import { type ListRow, TreeList } from './TreeList'

/** Levels that are open at first. */
const OPEN_DEPTH = 2
/** Up to so many nodes everything is. */
const SMALL = 40
const ROW_HEIGHT = 24
/** Characters of a value in its row; below the tree it is shown whole. */
const IN_ROW = 120

interface Row extends ListRow {
  readonly node: TreeNode
}

export function Settings(props: { label: string; value: Plain }): JSX.Element {
  const nodes = useMemo(() => flattenTree(props.value), [props.value])
  const [folded, setFolded] = useState<ReadonlySet<string>>(() => closedAtFirst(nodes))
  const [query, setQuery] = useState('')
  const [current, setCurrent] = useState<string | null>(null)
  // Paths, not positions: when the checkpoint is described anew, what was open stays open.
  const positions = useMemo(
    () => new Set(nodes.flatMap(({ path, index }) => (folded.has(path) ? [index] : []))),
    [nodes, folded],
  )
  const wanted = query.trim()
  const rows = useMemo(
    () => visibleNodes(nodes, positions, wanted).map((node) => rowOf(node, wanted !== '' || !positions.has(node.index))),
    [nodes, positions, wanted],
  )
  const chosen = rows.find(({ id }) => id === current)?.node
  return (
    <div class="settings">
      <div class="tool-row">
        <input
          class="input"
          type="search"
          aria-label={`search in ${props.label}`}
          placeholder="name or value"
          value={query}
          onInput={(event) => setQuery(event.currentTarget.value)}
        />
        <span class="muted" role="status">
          {wanted ? `${formatNumber(countMatches(nodes, wanted))} of ${formatNumber(nodes.length)}` : ''}
        </span>
        <button type="button" class="button" onClick={() => setFolded(new Set())}>
          open all
        </button>
        <button type="button" class="button" onClick={() => setFolded(new Set(nodes.filter((n) => n.isBranch).map((n) => n.path)))}>
          close all
        </button>
        <CopyButton text={JSON.stringify(props.value, null, 2)} what={`${props.label} as JSON`} label="JSON" />
      </div>
      {rows.length === 0 && <p class="muted">nothing in it has “{visible(clipped(wanted, 80))}” in its name or value</p>}
      <TreeList<Row>
        label={props.label}
        role="tree"
        rows={rows}
        rowHeight={ROW_HEIGHT}
        current={current}
        onCurrent={(row) => setCurrent(row.id)}
        onToggle={(row) => setFolded(toggled(folded, row.node.path))}
        draw={drawRow}
      />
      {chosen && <Chosen node={chosen} />}
    </div>
  )
}

function drawRow({ node, isOpen }: Row): JSX.Element {
  return (
    <>
      <span class="fold" aria-hidden="true">
        {isOpen === null ? '' : isOpen ? '▾' : '▸'}
      </span>
      <span class="tree-key">
        <bdi>{visible(clipped(node.key, IN_ROW))}</bdi>
      </span>
      <span class={node.isBranch ? 'tree-value muted' : `tree-value tree-${kindOf(node.value)}`}>
        <bdi>{visible(clipped(node.text, IN_ROW))}</bdi>
      </span>
    </>
  )
}

/** What the cursor is on, whole. */
function Chosen({ node }: { node: TreeNode }): JSX.Element {
  const value = node.isBranch ? JSON.stringify(node.value, null, 2) : valueText(node.value)
  return (
    <div class="chosen">
      <div>
        <code>
          <Text value={node.path} />
        </code>
        <CopyButton text={node.path} what="path" label="path" />
        <CopyButton text={value} what="value" label="value" />
      </div>
      {!node.isBranch && (
        <div class="chosen-value">
          <Text value={value} limit={1_000} />
        </div>
      )}
    </div>
  )
}

function rowOf(node: TreeNode, isOpen: boolean): Row {
  const { path, depth, position, siblings, isBranch } = node
  return { id: path, depth, position, siblings, isOpen: isBranch ? isOpen : null, node }
}

function closedAtFirst(nodes: readonly TreeNode[]): ReadonlySet<string> {
  if (nodes.length <= SMALL) return new Set()
  const closed = foldedBelow(nodes, OPEN_DEPTH - 1)
  return new Set(nodes.flatMap(({ index, path }) => (closed.has(index) ? [path] : [])))
}

function toggled(folded: ReadonlySet<string>, path: string): ReadonlySet<string> {
  const next = new Set(folded)
  if (!next.delete(path)) next.add(path)
  return next
}

function kindOf(value: Plain): string {
  return value === null ? 'null' : typeof value
}
