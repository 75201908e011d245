import { expect, test } from 'vitest'

import { groupHistory, metricHistory, metricNames, normalised, ofExperiment, ofRun, runHistory, type Point } from './history'

function point(id: string, patch: Partial<Point> = {}): Point {
  return {
    id,
    exp_name: 'dbnet',
    run_id: 'r1',
    epoch: 0,
    global_step: null,
    metrics: {},
    modified_at: '2025-10-11T00:00:00.000Z',
    health: 'valid',
    path: `dbnet/r1/${id}.ckpt`,
    root: '/srv',
    alias_of: null,
    ...patch,
  }
}

test('an experiment is what has its name; without a name, what lies beside it without one', () => {
  const rows = [point('a'), point('b', { exp_name: 'other' }), point('c', { exp_name: null }), point('d', { exp_name: null, path: 'x/d.ckpt' })]
  expect(ofExperiment(rows, point('a')).map(({ id }) => id)).toEqual(['a'])
  expect(ofExperiment(rows, point('c', { exp_name: null })).map(({ id }) => id)).toEqual(['c'])
})

test('a run is listed by epoch, whatever order its files came in', () => {
  const rows = [point('late', { epoch: 9 }), point('early', { epoch: 1 }), point('other', { run_id: 'r2' })]
  expect(ofRun(rows, point('x')).map(({ id }) => id)).toEqual(['early', 'late'])
})

test('each metric is a line through the epochs, with gaps where it is not known', () => {
  const rows = [
    point('a', { epoch: 0, metrics: { hmean: 0.5, loss: 2 } }),
    point('b', { epoch: 1, metrics: { hmean: 0.6 } }),
    point('c', { epoch: null, metrics: { hmean: 0.9 } }),
  ]
  const history = metricHistory(rows, ['hmean', 'loss'], null)
  expect([history.axis, history.xs]).toEqual(['epoch', [0, 1]])
  expect(history.lines.map(({ values }) => values)).toEqual([[0.5, 0.6], [2, null]])
  expect(history.lines[0]?.ids).toEqual(['a', 'b'])
  expect(metricNames(rows)).toEqual(['hmean', 'loss'])
})

test('of two files of one epoch the one that is asked about stands there', () => {
  const rows = [point('best', { metrics: { hmean: 0.5 } }), point('last', { metrics: { hmean: 0.5 } })]
  expect(metricHistory(rows, ['hmean'], 'last').lines[0]?.ids).toEqual(['last'])
  expect(metricHistory(rows, ['hmean'], null).lines[0]?.ids).toEqual(['best'])
})

test('a training that saves within one epoch is shown over its steps', () => {
  const rows = [100, 200].map((global_step) => point(`s${global_step}`, { global_step, metrics: { hmean: 0.1 } }))
  expect(metricHistory(rows, ['hmean'], null)).toMatchObject({ axis: 'global_step', xs: [100, 200] })
})

test('an experiment with many runs shows the one asked about and the newest others, and says how many there are', () => {
  const rows = ['r1', 'r2', 'r3', 'r4', 'r5', 'r6'].map((run_id, n) =>
    point(run_id, { run_id, epoch: n, metrics: { hmean: n }, modified_at: `2025-10-1${n}T00:00:00Z` }),
  )
  const history = runHistory(rows, 'hmean', point('r1', { run_id: 'r1' }))
  expect([history.runs, history.lines.map(({ label }) => label)]).toEqual([6, ['r1', 'r6', 'r5', 'r4']])
})

test('the curves of several experiments share one axis', () => {
  const one = [point('a', { epoch: 0, metrics: { hmean: 0.1 } }), point('b', { epoch: 2, metrics: { hmean: 0.3 } })]
  const two = [point('c', { epoch: 1, metrics: { hmean: 0.2 } })]
  const groups = [
    { label: 'one', rows: one, currentId: 'a' },
    { label: 'two', rows: two, currentId: 'c' },
  ]
  const history = groupHistory(groups, 'hmean')
  expect(history.xs).toEqual([0, 1, 2])
  expect(history.lines.map(({ values }) => values)).toEqual([[0.1, null, 0.3], [null, 0.2, null]])
})

test('normalised lines span 0 to 1, and a flat one lies in the middle', () => {
  const line = (values: (number | null)[]) => ({ label: '', metric: '', runId: null, ids: [], values })
  expect(normalised(line([2, null, 4, 3]))).toEqual([0, null, 1, 0.5])
  expect(normalised(line([7, 7]))).toEqual([0.5, 0.5])
})
