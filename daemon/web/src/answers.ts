/** What the daemon answers to the panels, as types: the same names as in /openapi.json. */

import type { Entry, Finding, Problem } from './wire'

/** What JSON can say. */
export type Plain = null | boolean | number | string | readonly Plain[] | { readonly [key: string]: Plain }

export type Format =
  | 'torch_zip'
  | 'torchscript'
  | 'torch_legacy'
  | 'torch_tar'
  | 'safetensors'
  | 'dcp'
  | 'fsdp'
  | 'deepspeed'
  | 'transformers'

export interface CallbackState {
  readonly key: string
  readonly kind: string
  readonly monitor: string | null
  readonly mode: string | null
  readonly best_model_path: string | null
  readonly best_model_score: number | null
  readonly current_score: number | null
  readonly state: { readonly [key: string]: Plain }
}

/** `GET /checkpoints/{id}`: an entry, and what its description adds where one is kept. */
export interface CheckpointDetail extends Entry {
  readonly findings: readonly Finding[]
  readonly metadata?: { readonly [key: string]: Plain }
  /** Dotted metadata field → where its value came from. */
  readonly provenance?: Readonly<Record<string, string>>
  readonly user?: { readonly [key: string]: Plain }
  readonly sidecar?: string
  readonly config?: Plain
  /** Values of config and hyper-parameters that are hidden: they looked like secrets. */
  readonly redacted?: number
  readonly verified_at?: string | null
  readonly hyper_parameters?: { readonly [key: string]: Plain } | null
  readonly callbacks?: readonly CallbackState[]
  readonly parameters_by_part?: Readonly<Record<string, number>>
  readonly unsafe_globals?: readonly string[]
  readonly weights_only?: boolean | null
  readonly model_class?: string | null
  readonly has_state_dict?: boolean
  readonly can_load?: boolean
  readonly error_message?: string | null
  readonly recognized?: readonly Recognition[]
  readonly lightning_version?: string | null
  readonly archive_id?: string | null
  readonly digest?: string | null
  readonly seal?: string
  readonly shards?: readonly { readonly name: string; readonly size_bytes: number }[]
  readonly n_tensors?: number
}

export interface Recognition {
  readonly part: string
  readonly name: string
  readonly family: string
  /** 0 to 1. */
  readonly confidence: number
  readonly evidence: readonly string[]
}

export type Role = 'weights' | 'optimizer' | 'other'

export interface TensorInfo {
  readonly name: string
  readonly dtype: string
  readonly shape: readonly number[]
  readonly nbytes: number
  readonly role: string
  readonly storage: string
}

/** `GET /checkpoints/{id}/tensors`. */
export interface TensorTable {
  readonly id: string
  readonly total: number
  readonly nbytes: number
  readonly limit: number
  readonly offset: number
  readonly tensors: readonly TensorInfo[]
}

export type Direction = 'min' | 'max'
export type Agreement = 'equal' | 'differing' | 'missing'
export type Sameness = 'same' | 'different' | 'unknown'

/** One attribute of all compared checkpoints, in the order in which they were asked for. */
export interface Attribute {
  readonly name: string
  readonly values: readonly Plain[]
  readonly status: Agreement
  /** Positions of those that do not have it. */
  readonly missing: readonly number[]
  readonly direction: Direction | null
  readonly best: readonly number[]
}

export interface AttributeSection {
  readonly rows: readonly Attribute[]
  readonly equal: number
  readonly differing: number
  readonly missing: number
  /** Rows that are counted and not listed. */
  readonly omitted: number
}

export const TENSOR_CHANGES = [
  'added',
  'removed',
  'reshaped',
  'dtype_changed',
  'changed',
  'unknown',
  'same',
] as const
export type TensorChange = (typeof TENSOR_CHANGES)[number]
export type TensorCounts = Readonly<Record<TensorChange, number>>

export interface TensorRow {
  readonly name: string
  readonly role: string
  readonly shapes: readonly (readonly number[] | null)[]
  readonly dtypes: readonly (string | null)[]
  readonly nbytes: readonly (number | null)[]
  /** Of each checkpoint but the first. */
  readonly changes: readonly (TensorChange | 'absent')[]
}

export type ChecksumEvidence = 'none' | 'failed' | 'recorded' | 'verified'

export interface TensorSection {
  readonly known: readonly boolean[]
  readonly totals: readonly number[]
  readonly prefixes: readonly string[]
  readonly checksums: readonly ChecksumEvidence[]
  readonly counts: readonly TensorCounts[]
  readonly weights: readonly TensorCounts[]
  readonly total: number
  readonly limit: number
  readonly offset: number
  readonly rows: readonly TensorRow[]
}

export const ATTRIBUTE_SECTIONS = ['metrics', 'training', 'hyper_parameters', 'config', 'model', 'identity'] as const
export type SectionName = (typeof ATTRIBUTE_SECTIONS)[number]

/** `GET /checkpoints/compare`. */
export type Comparison = {
  readonly checkpoints: readonly Entry[]
  readonly verdict: Sameness
  readonly weights: readonly Sameness[]
  readonly tensors: TensorSection
} & Readonly<Record<SectionName, AttributeSection>>

export interface RootStatus {
  readonly path: string
  readonly online: boolean
  readonly watching: boolean
  readonly writable: boolean | null
  readonly complete_as_of: string | null
  readonly sweep_started_at: string | null
  readonly last_sweep_s: number | null
  readonly last_error: string | null
}

export interface VerifierStatus {
  readonly level: string
  readonly by_level: Readonly<Record<string, number>>
  readonly by_finding: Readonly<Record<string, number>>
  readonly verifying: string | null
  readonly queued: number
  readonly bytes_per_s: number
  readonly bytes_read: number
  readonly outcomes: Readonly<Record<string, number>>
  readonly oldest_verified_at: string | null
  readonly problem: string | null
}

/** `GET /health/checkpoints`. */
export interface CatalogHealth {
  readonly catalog_status: 'healthy' | 'degraded' | 'unhealthy'
  readonly reasons: readonly string[]
  readonly checkpoint_count: number
  readonly metadata_coverage: number
  readonly complete_as_of: string | null
  readonly revision: number
  readonly started_at: string
  readonly roots: readonly RootStatus[]
  readonly by_health: Readonly<Record<string, number>>
  readonly by_safety: Readonly<Record<string, number>>
  readonly with_sidecar: number
  readonly with_state_metadata: number
  readonly last_build_time: number | null
  readonly last_build_at: string | null
  readonly last_partial_build_at: string | null
  readonly fast_path_count: number
  readonly slow_path_count: number
  readonly pending: number
  readonly writing_sidecars: number
  readonly skipped_sidecars: number
  readonly skipped_links: number
  readonly search: string
  readonly state_durable: boolean
  readonly recent_errors: readonly RecentError[]
  readonly worker_crashes: number
  readonly sandbox: string
  readonly verification: VerifierStatus | null
  /** Whether this browser may ask for a rebuild. */
  readonly may_rebuild?: boolean
}

export interface RecentError {
  readonly at: string
  readonly what: string
  readonly path: string | null
  readonly message: string
}

export type RebuildMode = 'sweep' | 'full'

export interface RebuildAccepted {
  readonly token: string
  readonly mode: RebuildMode
}

/** The problem of a checkpoint that was there: status 410. */
export interface Gone extends Problem {
  readonly path: string
  readonly reason: string
  readonly deleted_at: string
  /** The id under which the file is listed now. */
  readonly moved_to?: string
}
