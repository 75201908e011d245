/** The page begins: state from address and preferences, the feed, the first drawing. */

import { render } from 'preact'

import { announceAll } from './announce'
import { App } from './components/App'
import { type Feed, startFeed } from './feed'
import { followSearch } from './found'
import { followPrefs } from './prefs'
import { app } from './state'
import { store } from './store'
import { FADE_MS } from './store/fading'
import { followAddress } from './url'
import { readPageConfig } from './wire'
import './styles/base.css'
import './styles/header.css'
import './styles/table.css'

const config = readPageConfig()
followPrefs()
followAddress()
store.setFilters(app.get().filters)
store.setSort(app.get().sort)
app.subscribe(({ filters, sort }) => {
  store.setFilters(filters)
  store.setSort(sort)
})
const motion = matchMedia('(prefers-reduced-motion: reduce)')
const followMotion = (): void => {
  store.fadeMs = motion.matches ? 0 : FADE_MS
}
followMotion()
motion.addEventListener('change', followMotion)
announceAll(store)
followSearch(store)

let running = startFeed(store, config, app.get().streaming)
let { streaming } = app.get()
app.subscribe((state) => {
  if (state.streaming === streaming) return
  streaming = state.streaming
  running.stop()
  running = startFeed(store, config, streaming)
})
const feed: Feed = { retry: () => running.retry(), stop: () => running.stop() }
const root = document.getElementById('app')
if (root) render(<App config={config} feed={feed} />, root)
