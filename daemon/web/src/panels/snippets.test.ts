import { spawnSync } from 'node:child_process'
import fc from 'fast-check'
import { expect, test } from 'vitest'

import { loadingOf, pythonText, shellWord } from './snippets'

const VALID = {
  id: 'abc',
  root: '/srv/outputs',
  path: 'run/a.ckpt',
  checkpoint_path: '/srv/outputs/run/a.ckpt',
  format: 'torch_zip',
  health: 'valid',
  safety: 'safe',
  monitor: null,
  weights_only: true,
  unsafe_globals: [],
} as const
const codeOf = (detail: Parameters<typeof loadingOf>[0]) => loadingOf(detail).snippets.map(({ code }) => code).join('\n')

test('a safe checkpoint is loaded with weights_only, on the CPU', () => {
  expect(loadingOf(VALID).warning).toBeNull()
  expect(codeOf(VALID)).toContain(
    'import torch\n\npath = "/srv/outputs/run/a.ckpt"\ncheckpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)',
  )
  expect(codeOf(VALID)).toContain('ckptd show abc')
})

test('no snippet ever turns weights_only off', () => {
  for (const format of ['torch_zip', 'torch_legacy', 'safetensors', 'torchscript', 'dcp', 'fsdp', 'deepspeed', 'transformers', null])
    for (const weights_only of [true, false, null])
      for (const safety of ['safe', 'unknown', 'unsafe'] as const)
        expect(codeOf({ ...VALID, format, weights_only, safety, lightning_version: '2.6' })).not.toMatch(/weights_only=False/)
})

test('what is unsafe, invalid, unfinished or offline is not loaded: the snippets only look at it', () => {
  const cases = [
    [{ safety: 'unsafe', unsafe_globals: ['posix.system'] }, 'posix.system'],
    [{ health: 'invalid' }, 'findings'],
    [{ health: 'writing' }, 'wait'],
    [{ health: 'offline' }, 'disk'],
  ] as const
  for (const [patch, word] of cases) {
    const loading = loadingOf({ ...VALID, ...patch })
    expect(loading.warning).toContain(word)
    expect(loading.snippets.map(({ language }) => language)).toEqual(['shell', 'shell'])
    expect(loading.snippets[1]?.code).toBe('ckptd validate /srv/outputs/run/a.ckpt --level checksum')
  }
})

test('a refused class is allowed by name, with the warning to trust the file first', () => {
  const detail = { ...VALID, safety: 'unknown', weights_only: false, unsafe_globals: ['my.code.Model', 'x; import os'] } as const
  expect(loadingOf(detail).warning).toContain('trust')
  expect(codeOf(detail)).toContain('import my.code\n\npath = "/srv/outputs/run/a.ckpt"\nwith torch.serialization.safe_globals([my.code.Model]):')
  expect(codeOf(detail)).not.toContain('import os')
})

test('each format has its own loader', () => {
  expect(codeOf({ ...VALID, format: 'safetensors' })).toContain('load_file(')
  expect(codeOf({ ...VALID, format: 'dcp' })).toContain('dcp_to_torch_save(')
  expect(codeOf({ ...VALID, format: 'fsdp' })).toContain('consolidate_checkpoint')
  expect(codeOf({ ...VALID, format: 'deepspeed' })).toContain('zero_to_fp32')
  expect(codeOf({ ...VALID, format: 'transformers' })).toContain('trust_remote_code=False')
  expect(codeOf({ ...VALID, format: 'torchscript' })).toContain('torch.jit.load(')
  expect(codeOf({ ...VALID, lightning_version: '2.6.0' })).toContain('load_from_checkpoint(')
  expect(codeOf({ ...VALID, lightning_version: '2.6.0', hyper_parameters: { _instantiator: 'x' } })).not.toContain(
    'load_from_checkpoint(',
  )
})

test('a name that is no UTF-8 is given by its bytes', () => {
  const detail = { ...VALID, path: 'run/\\xff.ckpt', path_base64: 'cnVuL/8uY2twdA==', checkpoint_path: '/srv/outputs/run/\\xff.ckpt' }
  expect(codeOf(detail)).toContain('import base64\nimport os\nimport torch\n\npath = os.path.join("/srv/outputs", os.fsdecode(base64.b64decode("cnVuL/8uY2twdA==")))')
  expect(codeOf(detail)).not.toContain('\\xff')
})

test('a path comes out of the shell and of Python as it went in, whatever it holds', () => {
  const hostile = fc.string({ unit: fc.constantFrom("'", '"', '\\', '$(id)', '`', '\n', ';', ' ', '\u202e', 'ä', '-', '🚀', '{x}') })
  const texts = fc.sample(hostile, { numRuns: 60, seed: 7 }).filter(Boolean)
  const script = texts.map((text) => `printf '%s\\0' ${shellWord(text)}`).join('\n')
  const shell = spawnSync('bash', ['-c', script], { encoding: 'utf8' })
  expect(shell.stdout.split('\0').slice(0, -1)).toEqual(texts)
  // JSON's strings are Python's, but for characters beyond the first plane.
  for (const text of texts)
    if (!/[\u{10000}-\u{10ffff}]/u.test(text)) expect(JSON.parse(pythonText(text).replace(/\\U/g, '\\u'))).toBe(text)
})
