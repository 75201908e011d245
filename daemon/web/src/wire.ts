/** What the daemon says, as types: the same names as in /openapi.json. */

export type Health = 'writing' | 'valid' | 'invalid' | 'offline'
export type Verified = 'none' | 'structure' | 'checksum' | 'weights'
export type Safety = 'safe' | 'unsafe' | 'unknown'
export type Severity = 'error' | 'warning' | 'info'
export type MetadataSource = 'none' | 'sidecar' | 'daemon' | 'state'

export const HEALTHS: readonly Health[] = ['valid', 'invalid', 'writing', 'offline']
export const SAFETIES: readonly Safety[] = ['safe', 'unsafe', 'unknown']

/** A finding as lists show it. */
export interface FindingRef {
  readonly code: string
  readonly severity: Severity
}

/** A finding in full, as the detail of a checkpoint shows it. */
export interface Finding extends FindingRef {
  readonly message: string
  readonly remedy: string
}

/** One checkpoint in the catalog. Text in it is whatever somebody wrote into a file: show it as text, never as markup. */
export interface Entry {
  readonly id: string
  /** Relative to its root; bytes that are not UTF-8 are shown as `\xNN`. */
  readonly path: string
  readonly path_base64?: string
  readonly root: string
  /** Absolute. */
  readonly checkpoint_path: string
  readonly display_name: string
  readonly exp_name: string | null
  readonly run_id: string | null
  readonly architecture: string | null
  readonly backbone: string | null
  readonly epoch: number | null
  readonly global_step: number | null
  readonly metrics: Readonly<Record<string, number>>
  readonly monitor: string | null
  readonly monitor_mode: string | null
  readonly monitor_value: number | null
  readonly size_bytes: number
  /** RFC 3339, UTC. */
  readonly modified_at: string
  readonly created_at: string | null
  readonly format: string | null
  readonly n_parameters: number | null
  readonly weights_bytes: number | null
  readonly optimizer_bytes: number | null
  readonly dtypes: readonly string[]
  readonly health: Health
  readonly verified: Verified
  readonly safety: Safety
  readonly findings: readonly FindingRef[]
  readonly has_metadata: boolean
  readonly metadata_source: MetadataSource
  readonly has_config: boolean
  readonly config_path: string | null
  readonly content_id: string | null
  readonly alias_of: string | null
  readonly revision: number
}

export type DeleteReason = 'removed' | 'moved' | 'filtered'

export interface Deleted {
  readonly id: string
  readonly path: string
  readonly reason: DeleteReason
}

/** A message of `/checkpoints/events`; docs/streaming.md says what each means. */
export type Message =
  | { readonly type: 'reset'; readonly reason: string }
  | { readonly type: 'batch'; readonly checkpoints: readonly Entry[]; readonly count: number; readonly has_more: boolean }
  | { readonly type: 'complete'; readonly total: number; readonly revision: number }
  | { readonly type: 'resumed'; readonly revision: number }
  | { readonly type: 'upsert'; readonly checkpoints: readonly Entry[] }
  | { readonly type: 'delete'; readonly checkpoints: readonly Deleted[] }
  | { readonly type: 'heartbeat'; readonly revision: number; readonly complete_as_of: string | null }
  | { readonly type: 'progress'; readonly done: number; readonly total: number }
  | { readonly type: 'rebuilt'; readonly token: string; readonly revision: number }
  | { readonly type: 'bye'; readonly reason: string }

/** The answer of `GET /checkpoints`. */
export interface ListAnswer {
  readonly checkpoints: readonly Entry[]
  readonly total: number
  readonly page: number
  readonly page_size: number
  readonly total_pages: number
  readonly revision: number
  readonly next: string | null
}

/** `application/problem+json` (RFC 9457), as the daemon writes it. */
export interface Problem {
  readonly type: string
  readonly title: string
  readonly status: number
  readonly detail: string
  readonly remedy: string
  readonly field?: string
  readonly value?: string
}

/** What the server tells the page in `<meta name="ckptd">`. */
export interface PageConfig {
  readonly version: string
  readonly instance: string
  /** The watched directories, as people know them. */
  readonly roots: readonly string[]
  /** Whether the page listens to the live stream; false: it fetches pages of the list. */
  readonly streaming: boolean
  /** Path prefix of all addresses, with a slash at its end. */
  readonly base: string
  /** Seconds between two heartbeats; 15 where the server does not say. */
  readonly heartbeat_s?: number
}

const NO_CONFIG: PageConfig = { version: '', instance: '', roots: [], streaming: true, base: '' }

/** Read what the server wrote into the page; a page that was opened without a server gets defaults. */
export function readPageConfig(): PageConfig {
  const content = document.querySelector<HTMLMetaElement>('meta[name="ckptd"]')?.content
  if (!content?.startsWith('{')) return NO_CONFIG
  try {
    return { ...NO_CONFIG, ...(JSON.parse(content) as Partial<PageConfig>) }
  } catch {
    return NO_CONFIG
  }
}
