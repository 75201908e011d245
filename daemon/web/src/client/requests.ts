/** Requests to the daemon: where it is, what is asked for, and what it says when it refuses. */

import type { Problem } from '../wire'

/** Raised when the daemon refused, with what it said; `status` is 0 where it could not be reached. */
export class CatalogError extends Error {
  constructor(
    readonly status: number,
    message: string,
    /** What to do about it. */
    readonly remedy: string,
  ) {
    super(message)
    this.name = 'CatalogError'
  }

  /** Whether a token is missing or wrong. */
  get isSignedOut(): boolean {
    return this.status === 401
  }
}

/** Filters of the list, as its query parameters: `{ exp_name: ['a', 'b'], min_hmean: 0.8 }`. */
export type Query = Readonly<Record<string, string | number | boolean | readonly string[]>>

export interface RequestOptions {
  /** Where the daemon is, with a slash at its end; by default where the page is. */
  readonly base?: string | URL
  readonly query?: Query
  /** Ends it. */
  readonly signal?: AbortSignal
}

/** The address of a route with its query, relative to the daemon. */
export function addressOf(path: string, { base, query }: RequestOptions, more: Query): string {
  const url = new URL(path, base ?? (typeof document === 'undefined' ? undefined : document.baseURI))
  for (const [name, value] of Object.entries({ ...query, ...more })) {
    for (const item of Array.isArray(value) ? (value as readonly string[]) : [value]) {
      url.searchParams.append(name, String(item))
    }
  }
  return url.href
}

/**
 * One answer.
 *
 * @throws CatalogError - where the daemon refuses. Whatever `fetch` throws where it cannot be reached.
 */
export async function fetchJson<T>(url: string, signal: AbortSignal | undefined): Promise<T> {
  const response = await fetch(url, { headers: { Accept: 'application/json' }, ...(signal ? { signal } : {}) })
  if (response.ok) return (await response.json()) as T
  const problem = (await response.json().catch(() => ({}))) as Partial<Problem>
  throw new CatalogError(
    response.status, problem.detail ?? `ckptd answered ${response.status}`, problem.remedy ?? 'look into its log',
  )
}

/** Any error of a request, as one with a remedy. */
export function asCatalogError(error: unknown): CatalogError {
  if (error instanceof CatalogError) return error
  return new CatalogError(0, 'ckptd cannot be reached', 'see whether it runs: systemctl status ckptd')
}
