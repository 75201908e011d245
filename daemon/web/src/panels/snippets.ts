/** Snippets: how to load a checkpoint, by what its format is and what loading it would run; to be copied as they are. */

import type { CheckpointDetail } from '../answers'

export interface Snippet {
  readonly title: string
  readonly language: 'python' | 'shell'
  readonly code: string
  /** What to know before running it; null where there is nothing. */
  readonly note: string | null
}

export interface Loading {
  /** Why it must not, or should not simply, be loaded; null where nothing speaks against it. */
  readonly warning: string | null
  readonly snippets: readonly Snippet[]
}

type Loadable = Pick<
  CheckpointDetail,
  'id' | 'checkpoint_path' | 'path' | 'path_base64' | 'root' | 'format' | 'health' | 'safety' | 'monitor'
> &
  Partial<
    Pick<CheckpointDetail, 'weights_only' | 'model_class' | 'unsafe_globals' | 'lightning_version' | 'hyper_parameters'>
  >

const LOOK_FIRST = 'ckptd looks at it without running anything that it holds.'

/** How to load this checkpoint safely, and how to look at it from a terminal. */
export function loadingOf(detail: Loadable): Loading {
  const command = commands(detail)
  const warning = reasonAgainst(detail)
  if (detail.health !== 'valid' || detail.safety === 'unsafe') return { warning, snippets: command }
  const loaders = pythonSnippets(detail).map((each) =>
    each.language === 'python' ? { ...each, code: withPath(each.code, detail) } : each,
  )
  return { warning, snippets: [...loaders, ...command] }
}

/** Text as a literal of Python, with everything escaped that could be mistaken for something else. */
export function pythonText(text: string): string {
  let literal = ''
  for (const character of text) literal += pythonCharacter(character)
  return `"${literal}"`
}

/** Text as one word of a POSIX shell; `$'…'` of bash, zsh and ksh where it has characters that do not show. */
export function shellWord(text: string): string {
  if (/^[\w@%+=:,./-]+$/.test(text) && !text.startsWith('-')) return text
  if (isPrintable(text)) return `'${text.replaceAll("'", "'\\''")}'`
  let word = ''
  for (const byte of new TextEncoder().encode(text)) word += shellByte(byte)
  return `$'${word}'`
}

function reasonAgainst(detail: Loadable): string | null {
  if (detail.health === 'writing') return 'It is still being written: wait until it is whole.'
  if (detail.health === 'offline') return 'Its disk cannot be read just now.'
  if (detail.health === 'invalid') return 'It is not valid: the findings say why, and what to do. Do not load it.'
  if (detail.safety === 'unsafe') return `Do not load it: that would run ${named(detail)}.`
  if (detail.format === 'torchscript') return 'It is a compiled program: loading and calling it runs the code in it.'
  if ((detail.format === 'dcp' || detail.format === 'fsdp') && detail.safety !== 'safe')
    return `Its .metadata file is a pickle, which loading unpickles in full, with ${named(detail)}. Only if you trust it.`
  if (hasInstantiator(detail)) return 'Its hyper-parameters name a function (_instantiator) that Lightning calls on loading.'
  if (detail.weights_only === false)
    return `torch.load(weights_only=True) refuses it: it needs ${named(detail)}. Only load it if you trust where it came from.`
  if (detail.format === 'torch_tar') return 'Its format is older than torch 0.1.10: only an old torch reads it.'
  return null
}

function named(detail: Loadable): string {
  const names = detail.unsafe_globals ?? []
  if (names.length === 0) return detail.model_class ?? 'code that is not on the list of safe names'
  return names.slice(0, 3).join(', ') + (names.length > 3 ? ` and ${names.length - 3} more` : '')
}

/** The path on a line of its own behind the imports: the call stays short enough to read. */
function withPath(code: string, detail: Loadable): string {
  const imports = detail.path_base64 === undefined ? '' : 'import base64\nimport os\n'
  return imports + code.replace('\n\n', () => `\n\npath = ${pythonPath(detail)}\n`)
}

/** Each begins with its imports, and finds the checkpoint's path in `path`. */
function pythonSnippets(detail: Loadable): Snippet[] {
  switch (detail.format) {
    case 'safetensors':
      return [python('safetensors', 'from safetensors.torch import load_file\n\nweights = load_file(path, device="cpu")')]
    case 'torchscript':
      return [python('TorchScript', 'import torch\n\nmodel = torch.jit.load(path, map_location="cpu")')]
    case 'dcp':
      return [python('torch.distributed.checkpoint', CONSOLIDATE, 'Makes one file of it, on the CPU.')]
    case 'fsdp':
      return [
        { ...shell('Lightning (FSDP)', `python -m lightning.pytorch.utilities.consolidate_checkpoint ${pathWord(detail)}`), note: 'Makes one file of it.' },
        python('torch.distributed.checkpoint', CONSOLIDATE, 'The weights alone.'),
      ]
    case 'deepspeed':
      return [python('DeepSpeed', DEEPSPEED, 'Needs deepspeed; it unpickles the rank files in full: only if you trust them.')]
    case 'transformers':
      return [
        python(
          'transformers',
          'from transformers import AutoModel\n\nmodel = AutoModel.from_pretrained(path, trust_remote_code=False)',
        ),
      ]
    default:
      return torchSnippets(detail)
  }
}

function torchSnippets(detail: Loadable): Snippet[] {
  if (detail.format === 'torch_tar') return []
  if (detail.weights_only === false) return [allowed(detail)]
  const mmap = detail.format === 'torch_zip' ? ', mmap=True' : ''
  const snippets = [
    python(
      'PyTorch',
      `import torch\n\ncheckpoint = torch.load(path, map_location="cpu", weights_only=True${mmap})`,
      mmap ? 'mmap=True reads a tensor when it is used.' : null,
    ),
  ]
  if (detail.lightning_version && !hasInstantiator(detail))
    snippets.push(
      python(
        'Lightning',
        'from your_code import YourModule  # the LightningModule that was trained\n\nmodel = YourModule.load_from_checkpoint(path, map_location="cpu", weights_only=True)',
      ),
    )
  return snippets
}

function allowed(detail: Loadable): Snippet {
  const names = (detail.unsafe_globals ?? []).filter((name) => /^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$/.test(name)).slice(0, 20)
  const modules = [...new Set(names.map((name) => name.slice(0, name.lastIndexOf('.'))))]
  const imports = ['torch', ...modules.filter((name) => name !== 'torch')].map((name) => `import ${name}`).join('\n')
  const load = 'torch.load(path, map_location="cpu", weights_only=True)'
  const code = names.length
    ? `${imports}\n\nwith torch.serialization.safe_globals([${names.join(', ')}]):\n    checkpoint = ${load}`
    : `${imports}\n\ncheckpoint = ${load}  # says which names it refuses`
  return python('PyTorch, with named classes allowed', code, 'Each import runs the code of that module: read it first.')
}

const CONSOLIDATE =
  'from torch.distributed.checkpoint.format_utils import dcp_to_torch_save\n\ndcp_to_torch_save(path, "consolidated.pt")'

const DEEPSPEED =
  'import os\nfrom deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint\n\n' +
  'weights = get_fp32_state_dict_from_zero_checkpoint(os.path.dirname(path), tag=os.path.basename(path))'

function commands(detail: Loadable): Snippet[] {
  return [
    shell('Everything known of it', `ckptd show ${detail.id} --tensors --settings`),
    { ...shell('Check it here and now', `ckptd validate ${pathWord(detail)} --level checksum`), note: LOOK_FIRST },
  ]
}

function hasInstantiator(detail: Loadable): boolean {
  return detail.hyper_parameters !== null && detail.hyper_parameters !== undefined && '_instantiator' in detail.hyper_parameters
}

function python(title: string, code: string, note: string | null = null): Snippet {
  return { title, language: 'python', code, note }
}

function shell(title: string, code: string): Snippet {
  return { title, language: 'shell', code, note: null }
}

/** Where the name is no UTF-8, what is shown is not what the file is called: its bytes are given instead. */
function pythonPath(detail: Loadable): string {
  if (detail.path_base64 === undefined) return pythonText(detail.checkpoint_path)
  return `os.path.join(${pythonText(detail.root)}, os.fsdecode(base64.b64decode("${detail.path_base64}")))`
}

function pathWord(detail: Loadable): string {
  if (detail.path_base64 === undefined) return shellWord(detail.checkpoint_path)
  return `"$(printf %s/ ${shellWord(detail.root)}; printf %s ${detail.path_base64} | base64 -d)"`
}

function pythonCharacter(character: string): string {
  if (character === '"' || character === '\\') return `\\${character}`
  if (isPrintable(character)) return character
  const point = character.codePointAt(0) ?? 0
  return point > 0xffff ? `\\U${point.toString(16).padStart(8, '0')}` : `\\u${point.toString(16).padStart(4, '0')}`
}

function shellByte(byte: number): string {
  const character = String.fromCharCode(byte)
  if (byte >= 0x20 && byte < 0x7f && character !== "'" && character !== '\\') return character
  return `\\x${byte.toString(16).padStart(2, '0')}`
}

function isPrintable(text: string): boolean {
  return !/[\p{C}\p{Zl}\p{Zp}]/u.test(text)
}
