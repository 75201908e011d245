/**
 * The stream client of ckptd: `streamCheckpoints` for one look, `watchCheckpoints` to keep looking.
 *
 * Built as one plain module without imports, served by every daemon at `/client.js`; docs/streaming.md has examples.
 *
 * @module
 */

export { countCheckpoints, type StreamHandlers, type StreamOptions, streamCheckpoints } from './client/listing'
export { CatalogError, type Query, type RequestOptions } from './client/requests'
export { type Waiting, type Watch, type WatchHandlers, type WatchOptions, watchCheckpoints } from './client/watch'
export type { Deleted, DeleteReason, Entry, Message, Problem } from './wire'
