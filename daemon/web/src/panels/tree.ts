/** Nested settings as the rows of a tree: flattened once, then folded and searched without touching the data again. */

import type { Plain } from '../answers'

export interface TreeNode {
  /** Position in document order. */
  readonly index: number
  readonly key: string
  /** Dotted, a key with a dot in it quoted, as comparisons and the search name it. */
  readonly path: string
  readonly depth: number
  /** Position of what holds it; -1 at the top. */
  readonly parent: number
  readonly value: Plain
  /** Value of a leaf as text; of a branch what it holds. */
  readonly text: string
  readonly isBranch: boolean
  /** Its place among its siblings, from 1, and how many they are: what a screen reader says. */
  readonly position: number
  readonly siblings: number
  /** Position behind its last descendant. */
  end: number
}

/** Values of a list that is short and plain stand on one line: `[64, 128, 256]`. */
const INLINE_LENGTH = 80

/** All nodes below `root` in document order. */
export function flattenTree(root: Plain): TreeNode[] {
  const nodes: TreeNode[] = []
  addChildren(nodes, root, '', -1, 0)
  return nodes
}

/**
 * The nodes to show.
 *
 * @param folded positions of the branches that are closed.
 * @param query where it is not empty: only what has it in its path or value, with everything above and below that.
 */
export function visibleNodes(nodes: readonly TreeNode[], folded: ReadonlySet<number>, query: string): TreeNode[] {
  const kept = query ? matching(nodes, query) : null
  const shown: TreeNode[] = []
  for (let at = 0; at < nodes.length; ) {
    const node = nodes[at] as TreeNode
    if (kept !== null && !kept.has(at)) {
      at = node.end
      continue
    }
    shown.push(node)
    // A search opens what it found.
    at = node.isBranch && kept === null && folded.has(at) ? node.end : at + 1
  }
  return shown
}

/** How many nodes have the query themselves. */
export function countMatches(nodes: readonly TreeNode[], query: string): number {
  const wanted = query.toLowerCase()
  return nodes.reduce((count, node) => count + Number(isMatch(node, wanted)), 0)
}

/** Branches to close at first: those below `depth`, so that a large config opens as an overview. */
export function foldedBelow(nodes: readonly TreeNode[], depth: number): Set<number> {
  return new Set(nodes.filter((node) => node.isBranch && node.depth >= depth).map((node) => node.index))
}

/** A plain value on one line, as JSON has it; text without quotes. */
export function valueText(value: Plain): string {
  return typeof value === 'string' ? value : JSON.stringify(value)
}

function addChildren(nodes: TreeNode[], value: Plain, path: string, parent: number, depth: number): void {
  const children = childrenOf(value)
  children.forEach(([key, child], at) => {
    const isBranch = isFoldable(child)
    const node: TreeNode = {
      index: nodes.length,
      key,
      path: joined(path, Array.isArray(value) ? key : quoted(key)),
      depth,
      parent,
      value: child,
      text: isBranch ? summary(child) : valueText(child),
      isBranch,
      position: at + 1,
      siblings: children.length,
      end: 0,
    }
    nodes.push(node)
    if (isBranch) addChildren(nodes, child, node.path, node.index, depth + 1)
    node.end = nodes.length
  })
}

function childrenOf(value: Plain): [string, Plain][] {
  if (Array.isArray(value)) return value.map((item: Plain, index) => [String(index), item])
  return value !== null && typeof value === 'object' ? Object.entries<Plain>(value) : []
}

function isFoldable(value: Plain): boolean {
  if (value === null || typeof value !== 'object') return false
  if (!Array.isArray(value)) return Object.keys(value).length > 0
  const isPlain = value.every((item: Plain) => item === null || typeof item !== 'object')
  return value.length > 0 && !(isPlain && value.length <= 16 && JSON.stringify(value).length <= INLINE_LENGTH)
}

function summary(value: Plain): string {
  const count = childrenOf(value).length
  const noun = Array.isArray(value) ? 'item' : 'key'
  return `${count} ${noun}${count === 1 ? '' : 's'}`
}

function matching(nodes: readonly TreeNode[], query: string): Set<number> {
  const wanted = query.toLowerCase()
  const kept = new Set<number>()
  for (const node of nodes) {
    if (!isMatch(node, wanted)) continue
    for (let above = node.parent; above >= 0 && !kept.has(above); above = (nodes[above] as TreeNode).parent) kept.add(above)
    for (let below = node.index; below < node.end; below++) kept.add(below)
  }
  return kept
}

function isMatch(node: TreeNode, wanted: string): boolean {
  return node.path.toLowerCase().includes(wanted) || (!node.isBranch && node.text.toLowerCase().includes(wanted))
}

function quoted(key: string): string {
  return key === '' || key.includes('.') ? `"${key}"` : key
}

function joined(path: string, key: string): string {
  return path ? `${path}.${key}` : key
}
