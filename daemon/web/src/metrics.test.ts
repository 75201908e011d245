import { expect, test } from 'vitest'

import { bestOf, directionOf, metricKey } from './metrics'

const monitoring = (monitor: string, monitor_mode: string | null) => ({ monitor, monitor_mode })

test('the mode that a training declared decides, under any name of the same metric', () => {
  expect(directionOf('hmean', [monitoring('val/hmean', 'min')])).toBe('min')
  expect(directionOf('validation_loss', [monitoring('val_loss', 'max')])).toBe('max')
})

test('modes that contradict each other decide nothing, not even where the name would tell', () => {
  expect(directionOf('hmean', [monitoring('hmean', 'min'), monitoring('hmean', 'max')])).toBeNull()
})

test('without a mode the last word of the name that tells decides', () => {
  expect(directionOf('val/loss', [])).toBe('min')
  expect(directionOf('train_focalloss', [])).toBe('min')
  expect(directionOf('val_accuracy', [])).toBe('max')
  expect(directionOf('loss_score', [])).toBe('max')
  expect(directionOf('map50', [])).toBe('max')
  expect(directionOf('learning_rate', [])).toBeNull()
  expect(directionOf('hmean', [monitoring('val_loss', 'min')])).toBe('max')
})

test('names of the four metrics of the schema are one', () => {
  for (const name of ['val_loss', 'val/loss', 'validation.loss', 'eval_loss_epoch'])
    expect(metricKey(name)).toBe('validation_loss')
  expect(metricKey('val/HMEAN')).toBe('hmean')
  expect(metricKey('test/hmean')).toBe('test/hmean')
  expect(metricKey('loss')).toBe('loss')
})

test('the best value is known where there is a direction and a choice', () => {
  expect(bestOf([0.1, 0.3, null, 0.3], 'max')).toEqual([1, 3])
  expect(bestOf([0.1, 0.3], 'min')).toEqual([0])
  expect(bestOf([0.1, 0.3], null)).toEqual([])
  expect(bestOf([0.1, null], 'max')).toEqual([])
  expect(bestOf([0.2, 0.2], 'max')).toEqual([])
  expect(bestOf([Number.NaN, 1, 2], 'max')).toEqual([2])
})
