/** Requests to the daemon: bounded in time, cancellable, and every refusal with its remedy. */

import type {
  CatalogHealth,
  CheckpointDetail,
  Comparison,
  Gone,
  RebuildAccepted,
  RebuildMode,
  TensorInfo,
  TensorTable,
} from './answers'
import { connection } from './state'
import type { Problem } from './wire'

/** A daemon that compares twice 20,000 tensors on a loaded machine still answers in this time. */
export const TIMEOUT_MS = 30_000
/** `MAX_LIMIT` of daemon/http/tensors.py. */
const TENSORS_AT_ONCE = 10_000

/** Thrown when a request brought no answer that can be shown. */
export class ApiError extends Error {
  override readonly name = 'ApiError'

  /**
   * @param status of HTTP; 0 where nothing was answered.
   * @param message what happened.
   * @param remedy what to do about it.
   * @param problem what the daemon said, where it did.
   */
  constructor(
    readonly status: number,
    message: string,
    readonly remedy: string,
    readonly problem: Problem | null = null,
  ) {
    super(message)
  }

  /** The checkpoint was there and is gone; null for any other error. */
  get gone(): Gone | null {
    return this.status === 410 ? (this.problem as Gone) : null
  }
}

export type Fetch = (input: string, init: RequestInit) => Promise<Response>

interface Ask {
  readonly method?: 'GET' | 'POST'
  readonly accept?: string
  readonly signal?: AbortSignal | undefined
  readonly timeoutMs?: number
  readonly fetch?: Fetch
}

/**
 * Ask for `path`, relative to the page's own address, so that it works below a path prefix.
 *
 * @throws ApiError the daemon refused, or nothing answered in time. DOMException `AbortError` where `signal` fired.
 */
export async function ask(path: string, options: Ask = {}): Promise<Response> {
  const { method = 'GET', accept = 'application/json', signal, timeoutMs = TIMEOUT_MS } = options
  const limit = AbortSignal.timeout(timeoutMs)
  const asked: RequestInit = {
    method,
    headers: { Accept: accept },
    credentials: 'same-origin',
    signal: signal ? AbortSignal.any([signal, limit]) : limit,
  }
  let response: Response
  try {
    response = await (options.fetch ?? fetch)(addressOf(path), asked)
  } catch (error) {
    throw signal?.aborted ? error : unanswered(limit.aborted, timeoutMs)
  }
  if (response.ok) return response
  if (response.status === 401) connection.set({ ...connection.get(), status: 'signed-out' })
  throw await refusal(response)
}

/** The same for an answer in JSON. */
export async function askJson<T>(path: string, options: Ask = {}): Promise<T> {
  const response = await ask(path, options)
  try {
    return (await response.json()) as T
  } catch (error) {
    if (options.signal?.aborted) throw error
    throw new ApiError(response.status, 'the answer was cut off or is no JSON', 'try again; else look at the daemon’s log')
  }
}

export function fetchDetail(id: string, signal?: AbortSignal): Promise<CheckpointDetail> {
  return askJson(`checkpoints/${encodeURIComponent(id)}`, { signal })
}

/** The whole tensor table; in pieces where it is long, each of which is told to `onPiece` with what came so far. */
export async function fetchTensors(
  id: string,
  signal: AbortSignal | undefined,
  onPiece: (tensors: readonly TensorInfo[], total: number) => void = () => {},
): Promise<readonly TensorInfo[]> {
  const tensors: TensorInfo[] = []
  for (;;) {
    const query = `limit=${TENSORS_AT_ONCE}&offset=${tensors.length}`
    const table = await askJson<TensorTable>(`checkpoints/${encodeURIComponent(id)}/tensors?${query}`, { signal })
    tensors.push(...table.tensors)
    onPiece(tensors, table.total)
    if (table.tensors.length === 0 || tensors.length >= table.total) return tensors
  }
}

/** The address of a comparison, as the page asks for it and as people can. */
export function comparePath(ids: readonly string[], extra: Readonly<Record<string, string>> = {}): string {
  const query = new URLSearchParams([...ids.map((id): [string, string] => ['id', id]), ...Object.entries(extra)])
  return `checkpoints/compare?${query.toString()}`
}

export function fetchComparison(
  ids: readonly string[],
  extra: Readonly<Record<string, string>>,
  signal?: AbortSignal,
): Promise<Comparison> {
  return askJson(comparePath(ids, extra), { signal })
}

export const EXPORTS = {
  csv: { accept: 'text/csv', suffix: 'csv', label: 'CSV' },
  markdown: { accept: 'text/markdown', suffix: 'md', label: 'Markdown' },
  json: { accept: 'application/json', suffix: 'json', label: 'JSON' },
} as const
export type ExportFormat = keyof typeof EXPORTS

/** A comparison as a document, with all the rows of its tensor table that the daemon gives at once. */
export async function fetchExport(ids: readonly string[], format: ExportFormat, signal?: AbortSignal): Promise<string> {
  const response = await ask(comparePath(ids, { tensor_limit: String(TENSORS_AT_ONCE) }), {
    accept: EXPORTS[format].accept,
    signal,
  })
  return response.text()
}

export function fetchHealth(signal?: AbortSignal): Promise<CatalogHealth> {
  return askJson('health/checkpoints', { signal })
}

/** Start a rebuild; the stream says `rebuilt` with the token when it is done. */
export function requestRebuild(mode: RebuildMode): Promise<RebuildAccepted> {
  return askJson(`rebuild?mode=${mode}`, { method: 'POST' })
}

/** Whether an error only says that nobody waits for the answer any more. */
export function isAbort(error: unknown): boolean {
  return error instanceof DOMException && error.name === 'AbortError'
}

function addressOf(path: string): string {
  return new URL(path, document.baseURI).href
}

function unanswered(timedOut: boolean, timeoutMs: number): ApiError {
  return timedOut
    ? new ApiError(0, `no answer within ${timeoutMs / 1000} seconds`, 'the daemon is busy or hangs; try again')
    : new ApiError(0, 'the daemon cannot be reached', 'check that it runs and that the network is up; then try again')
}

async function refusal(response: Response): Promise<ApiError> {
  const problem = await problemOf(response)
  if (problem) return new ApiError(response.status, problem.detail, problem.remedy, problem)
  // Not ours: a proxy in between speaks.
  const said = `${response.status} ${response.statusText}`.trim()
  return new ApiError(response.status, `the answer was ${said}`, 'look at the proxy between this page and the daemon')
}

async function problemOf(response: Response): Promise<Problem | null> {
  if (!response.headers.get('content-type')?.startsWith('application/problem+json')) return null
  try {
    const problem = (await response.json()) as Partial<Problem>
    return typeof problem.detail === 'string' && typeof problem.remedy === 'string' ? (problem as Problem) : null
  } catch {
    return null
  }
}
