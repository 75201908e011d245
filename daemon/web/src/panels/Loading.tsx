/** How to load a checkpoint, as text to copy. */

import type { JSX } from 'preact'

import type { CheckpointDetail } from '../answers'
import { visible } from '../visible'
import { Badge, CopyButton } from './parts'
import { loadingOf, type Snippet } from './snippets'

export function Loading({ detail }: { detail: CheckpointDetail }): JSX.Element {
  const { warning, snippets } = loadingOf(detail)
  const isForbidden = detail.safety === 'unsafe' || detail.health === 'invalid'
  return (
    <>
      {warning && (
        <p class={isForbidden ? 'notice invalid' : 'notice warn'}>
          <Badge icon="warning" word={isForbidden ? 'do not load' : 'careful'} tone={isForbidden ? 'invalid' : 'warn'} />{' '}
          <bdi>{visible(warning)}</bdi>
        </p>
      )}
      {snippets.map((snippet) => (
        <Code key={snippet.title} snippet={snippet} />
      ))}
    </>
  )
}

function Code({ snippet }: { snippet: Snippet }): JSX.Element {
  const { title, code, note, language } = snippet
  return (
    <section class="snippet">
      <header>
        <h3>{title}</h3>
        <CopyButton text={code} what={`${title} snippet`} label="copy" />
      </header>
      {/* it scrolls sideways, also by keys */}
      <pre tabIndex={0} role="region" aria-label={`${title}, ${language}`}>
        <code>{code}</code>
      </pre>
      {note && <p class="muted">{note}</p>}
    </section>
  )
}
