/** The tensor table as rows: grouped by module and folded, or flat; searched and sorted. 20,000 tensors take milliseconds. */

import type { TensorInfo } from '../answers'

export type TensorSort = 'order' | 'name' | 'size'

export interface TensorGroup {
  readonly kind: 'group'
  /** Unique over all roles. */
  readonly id: string
  readonly role: string
  /** What its parent's name does not say. */
  readonly label: string
  readonly depth: number
  readonly count: number
  readonly nbytes: number
}

export interface TensorLeaf {
  readonly kind: 'tensor'
  readonly id: string
  readonly label: string
  readonly depth: number
  readonly nbytes: number
  readonly tensor: TensorInfo
}

export type TensorTreeRow = TensorGroup | TensorLeaf

interface Branch {
  id: string
  label: string
  count: number
  nbytes: number
  readonly children: Map<string, Branch>
  readonly leaves: TensorInfo[]
}

/** What a reader looks for first. */
const ROLES = ['weights', 'optimizer', 'other']

/** The tensors whose names have all of the query's words in them; case does not matter. */
export function matchingTensors(tensors: readonly TensorInfo[], query: string): readonly TensorInfo[] {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean)
  if (words.length === 0) return tensors
  return tensors.filter(({ name }) => {
    const lowered = name.toLowerCase()
    return words.every((word) => lowered.includes(word))
  })
}

/** Rows without groups. */
export function flatRows(tensors: readonly TensorInfo[], sort: TensorSort): TensorLeaf[] {
  return sorted(tensors, sort, (tensor) => tensor.name, (tensor) => tensor.nbytes).map((tensor) => leaf(tensor, tensor.name, 0))
}

/**
 * Rows grouped by role, then by module, from what the names say. Modules that hold nothing but one module are one row.
 *
 * @param isOpen whether a group shows what is in it.
 */
export function groupedRows(
  tensors: readonly TensorInfo[],
  sort: TensorSort,
  isOpen: (group: TensorGroup) => boolean,
): TensorTreeRow[] {
  const rows: TensorTreeRow[] = []
  const tree = trees.get(tensors) ?? branchesOf(tensors)
  trees.set(tensors, tree)
  for (const branch of tree) addRows(rows, branch, branch.label, 0, sort, isOpen)
  return rows
}

/** Opening a group draws new rows of the same tree. */
const trees = new WeakMap<readonly TensorInfo[], readonly Branch[]>()

/** All groups, outermost first. */
export function groupsOf(tensors: readonly TensorInfo[]): TensorGroup[] {
  return groupedRows(tensors, 'order', () => true).filter((row) => row.kind === 'group')
}

function branchesOf(tensors: readonly TensorInfo[]): Branch[] {
  const roles = new Map<string, Branch>()
  for (const tensor of tensors) {
    const role = childOf(roles, tensor.role, 'group')
    tally(role, tensor)
    let branch = role
    // Names outside of the weights are keys of dictionaries, paths among them: their dots say nothing of modules.
    const parts = tensor.role === 'other' ? [tensor.name] : tensor.name.split('.')
    for (const part of parts.slice(0, -1)) {
      branch = childOf(branch.children, part, branch.id)
      tally(branch, tensor)
    }
    branch.leaves.push(tensor)
  }
  const rank = (branch: Branch): number => (ROLES.indexOf(branch.label) + ROLES.length + 1) % (ROLES.length + 1)
  return [...roles.values()].sort((a, b) => rank(a) - rank(b))
}

function childOf(children: Map<string, Branch>, label: string, parentId: string): Branch {
  let child = children.get(label)
  if (child === undefined) {
    // No part of a name has a dot in it, so that no two groups share an id.
    child = { id: `${parentId}.${label}`, label, count: 0, nbytes: 0, children: new Map(), leaves: [] }
    children.set(label, child)
  }
  return child
}

function tally(branch: Branch, tensor: TensorInfo): void {
  branch.count += 1
  branch.nbytes += tensor.nbytes
}

function addRows(
  rows: TensorTreeRow[],
  branch: Branch,
  role: string,
  depth: number,
  sort: TensorSort,
  isOpen: (group: TensorGroup) => boolean,
): void {
  let inner = branch
  let label = branch.label
  for (let only = depth > 0 ? onlyChild(inner) : null; only !== null; only = onlyChild(inner)) {
    inner = only
    label += `.${inner.label}`
  }
  const group: TensorGroup = { kind: 'group', id: inner.id, role, label, depth, count: inner.count, nbytes: inner.nbytes }
  rows.push(group)
  if (!isOpen(group)) return
  for (const child of childrenOf(inner, sort)) {
    if ('tensor' in child) rows.push(leaf(child.tensor, child.label, depth + 1))
    else addRows(rows, child.branch, role, depth + 1, sort, isOpen)
  }
}

/** The one module that a branch consists of. */
function onlyChild({ leaves, children }: Branch): Branch | null {
  const [only] = children.values()
  return leaves.length === 0 && children.size === 1 && only !== undefined ? only : null
}

type Child = { label: string; nbytes: number } & ({ branch: Branch } | { tensor: TensorInfo })

function childrenOf(branch: Branch, sort: TensorSort): Child[] {
  const children: Child[] = [...branch.children.values()].map((child) => ({
    label: child.label,
    nbytes: child.nbytes,
    branch: child,
  }))
  for (const tensor of branch.leaves)
    children.push({ label: tensor.role === 'other' ? tensor.name : lastPart(tensor.name), nbytes: tensor.nbytes, tensor })
  return sorted(children, sort, (child) => child.label, (child) => child.nbytes)
}

function leaf(tensor: TensorInfo, label: string, depth: number): TensorLeaf {
  return { kind: 'tensor', id: `${tensor.role}:${tensor.name}`, label, depth, nbytes: tensor.nbytes, tensor }
}

function lastPart(name: string): string {
  return name.slice(name.lastIndexOf('.') + 1)
}

/** Numbers in names count as numbers, so that layer 10 follows layer 9. */
const collator = new Intl.Collator('en', { numeric: true })

function sorted<T>(items: readonly T[], sort: TensorSort, name: (item: T) => string, size: (item: T) => number): T[] {
  if (sort === 'order') return [...items]
  if (sort === 'size') return [...items].sort((a, b) => size(b) - size(a))
  return [...items].sort((a, b) => collator.compare(name(a), name(b)))
}
