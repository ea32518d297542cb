"""Text sets: tokenizers, the file of tokens, and rows without loss."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from adabatch.data import text, text_records, tokenizers
from adabatch.data.text import open_text
from adabatch.data.tfds_records import DatasetError
from adabatch.data.tokenizers import ByteTokenizer, SentencePieceTokenizer
from tests.tfds_sets import PREPARED, SENTENCES, needs, write_set

UNICODE = 'Naïve café,\n\n 日本語\t🎉 \r\n  two  spaces \0 end '
DOCUMENTS = [
  b'First Citizen:\nBefore we proceed any further, hear me speak.',
  b'',
  UNICODE.encode(),
  b'\xff no UTF-8 \xfe',
  b'All: Speak, speak.',
  b'x',
]


def open_tiny(root, length=8, **changes):
  given = {
    'tokenizer': 'bytes',
    'vocab_size': 300,
    'sequence_length': length,
    'cache_dir': root / 'cache',
    'train_split': 'train',
  }
  given.update(changes)
  return open_text('tiny', given.pop('split', 'train'), root, **given)


def stream(documents):
  """E d1 E d2 E ..., the slow and obvious way."""
  tokens = [256]
  for document in documents:
    tokens += [*document, 256]
  return tokens


def message(call):
  with pytest.raises(DatasetError) as caught:
    call()
  line = str(caught.value)
  assert '\n' not in line
  return line


def files(root):
  return {p.name for p in (root / 'cache').iterdir()}


# --- tokenizers ---


@pytest.fixture(scope='module')
def model():
  documents = [*DOCUMENTS, b'the quick brown fox jumps over the lazy dog'] * 40
  return tokenizers.train_sentencepiece(documents, 310)


def test_bytes_there_and_back():
  coder = ByteTokenizer()
  ids = coder.encode(UNICODE)
  assert ids.dtype == np.uint16
  assert ids.tolist() == list(UNICODE.encode())
  np.testing.assert_array_equal(coder.encode(UNICODE.encode()), ids)
  assert coder.decode(ids) == UNICODE
  assert coder.decode([97, 256, 98]) == 'ab'
  assert coder.decode([97, 255]) == 'a\ufffd'


def test_sentencepiece_there_and_back(model):
  coder = SentencePieceTokenizer(model)
  unseen = UNICODE + 'Ωжש𝄞 "never seen"\x7f'
  ids = coder.encode(unseen)
  assert ids.dtype == np.uint16
  assert coder.decode(ids) == unseen
  assert coder.decode([*ids, coder.end_of_document]) == unseen
  assert coder.vocab_size == 310
  assert ids.max() < 310
  assert coder.end_of_document not in ids
  # Pieces, not bytes.
  assert len(coder.encode('the quick brown fox')) < 19
  # Texts one after the other are the text.
  both = [*coder.encode('the lazy'), *coder.encode('dog')]
  assert coder.decode(both) == 'the lazydog'
  # What is spelt like the end of a document is text.
  assert coder.end_of_document not in coder.encode('a</s>b')


@pytest.mark.parametrize('kind', ['bytes', 'sentencepiece'])
def test_documents_are_encoded_one_by_one(kind, model):
  coder = ByteTokenizer() if kind == 'bytes' else SentencePieceTokenizer(model)
  expected = []
  for document in DOCUMENTS:
    expected += [*coder.encode(document), coder.end_of_document]
  got = coder.encode_documents(DOCUMENTS)
  assert got.dtype == coder.dtype
  assert got.tolist() == expected


def test_a_pickled_tokenizer_is_the_same(model):
  coder = SentencePieceTokenizer(model)
  other = pickle.loads(pickle.dumps(coder))
  assert other.fingerprint == coder.fingerprint
  np.testing.assert_array_equal(other.encode(UNICODE), coder.encode(UNICODE))


def test_large_vocabularies_need_wider_integers(model, monkeypatch):
  import sentencepiece

  for size, dtype in ((2**16, np.uint16), (2**16 + 1, np.uint32)):
    monkeypatch.setattr(
      sentencepiece.SentencePieceProcessor, 'vocab_size', lambda _, s=size: s
    )
    assert SentencePieceTokenizer(model).dtype == dtype


@pytest.mark.parametrize('size', [100, 100_000])
def test_a_vocabulary_that_cannot_be_learnt(size):
  line = message(lambda: tokenizers.train_sentencepiece(DOCUMENTS * 9, size))
  assert f'vocab_size={size}' in line
  assert 'trainer_interface' not in line


def test_training_reads_no_more_than_a_sample(monkeypatch):
  monkeypatch.setattr(tokenizers, 'SAMPLE_BYTES', 10_000)
  monkeypatch.setattr(tokenizers, '_SENTENCE_BYTES', 100)
  read = []

  def documents():
    for i in range(1000):
      read.append(i)
      yield b'some words\n' + b'and more ' * 50

  lines = list(tokenizers._sentences(documents()))
  assert len(read) == -(-10_000 // 461)
  assert max(len(line) for line in lines) == 100
  assert 9_000 < sum(len(line) for line in lines) <= 10_000


def test_the_sample_comes_from_all_over_the_split(tmp_path, monkeypatch):
  documents = [f'{i:04d}'.encode() for i in range(2000)]
  write_set(tmp_path, documents)
  texts = text_records.open_texts('tiny', 'train', tmp_path)
  monkeypatch.setattr(tokenizers, 'SAMPLE_BYTES', 4 * 500)
  sample = [int(d) for d in text_records.sample(texts)]
  assert 400 <= len(sample) <= 600
  assert min(sample) < 100
  assert max(sample) > 1700
  assert len(set(sample)) == len(sample)


# --- rows ---


@pytest.mark.parametrize('length', [1, 7, 8, 1000])
@pytest.mark.parametrize('documents', [DOCUMENTS, [b'0123456']])
def test_every_token_is_predicted_exactly_once(tmp_path, length, documents):
  write_set(tmp_path, documents)
  rows = open_tiny(tmp_path, length)
  expected = stream(documents)
  assert rows.num_examples == -(-(len(expected) - 1) // length)
  assert (rows.num_classes, rows.end_of_document) == (257, 256)
  chunk = rows.read(np.arange(rows.num_examples), None)
  tokens, weight = chunk.arrays['tokens'], chunk.arrays['weight']
  assert tokens.shape == (rows.num_examples, length + 1)
  assert (tokens.dtype, weight.dtype) == (np.uint16, np.float32)
  np.testing.assert_array_equal(tokens[:-1, -1], tokens[1:, 0])
  np.testing.assert_array_equal(weight[:-1], 1)
  real = np.round(weight * length).astype(int)
  predicted = [tokens[0, 0]]
  for row, count in zip(tokens, real, strict=True):
    predicted.extend(row[1 : 1 + count])
    assert np.all(row[1 + count :] == 256)
  assert predicted == expected


def test_rows_in_any_order(tmp_path):
  write_set(tmp_path, DOCUMENTS)
  rows = open_tiny(tmp_path)
  whole = rows.resident()
  assert whole.num_classes == 257
  indices = np.array([3, rows.num_examples - 1, 0, 3])
  chunk = rows.read(indices, np.array([7, 8, 9, 10]))
  assert chunk.skipped == ()
  assert set(chunk.arrays) == set(rows.shapes) == {'tokens', 'weight'}
  for key, values in chunk.arrays.items():
    np.testing.assert_array_equal(values, whole.arrays[key][indices])
    shape = rows.shapes[key]
    assert (values.shape[1:], values.dtype) == (shape.shape, shape.dtype)


def test_rows_travel_to_other_processes_without_their_tokens(tmp_path):
  write_set(tmp_path, [b'abc' * 10_000])
  rows = open_tiny(tmp_path)
  expected = rows.read(np.arange(5)).arrays['tokens']
  pickled = pickle.dumps(rows)
  assert len(pickled) < 2000
  other = pickle.loads(pickled)
  np.testing.assert_array_equal(
    other.read(np.arange(5)).arrays['tokens'], expected
  )
  assert other == rows


def test_parts_of_a_split(tmp_path):
  write_set(tmp_path, DOCUMENTS)
  whole = open_tiny(tmp_path)
  part = open_tiny(tmp_path, split='train[4:]')
  tokens = np.fromfile(part.path, np.uint16).tolist()
  assert tokens == stream(DOCUMENTS[4:])
  other = open_tiny(tmp_path, split='train[:4]')
  assert np.fromfile(other.path, np.uint16).tolist() == stream(DOCUMENTS[:4])
  assert part.fingerprint != whole.fingerprint
  assert part.path != whole.path


def test_fingerprints_tell_rows_apart(tmp_path):
  write_set(tmp_path, DOCUMENTS)
  first = open_tiny(tmp_path)
  assert open_tiny(tmp_path).fingerprint == first.fingerprint
  again = open_tiny(tmp_path, cache_dir=tmp_path / 'other')
  assert again.fingerprint == first.fingerprint
  assert open_tiny(tmp_path, 9).fingerprint != first.fingerprint
  changed = [*DOCUMENTS[:-1], b'y']
  write_set(tmp_path / 'b', changed)
  assert open_tiny(tmp_path / 'b').fingerprint != first.fingerprint


def test_sentencepiece_rows(tmp_path):
  write_set(tmp_path, SENTENCES)
  rows = open_tiny(tmp_path, tokenizer='sentencepiece', vocab_size=300)
  (path,) = (tmp_path / 'cache').glob('*.model')
  coder = SentencePieceTokenizer(path.read_bytes())
  tokens = rows.read(np.arange(rows.num_examples)).arrays['tokens']
  flat = [*tokens[:, :-1].ravel(), tokens[-1, -1]]
  assert flat[0] == rows.end_of_document == coder.end_of_document
  assert rows.num_classes == 300
  # E stands between documents.
  second = flat.index(coder.end_of_document, 1)
  assert coder.decode(flat[:second]).encode() == SENTENCES[0]
  assert coder.decode(flat).encode() == b''.join(SENTENCES)


# --- the files ---


def test_a_second_start_makes_nothing_again(tmp_path, monkeypatch):
  write_set(tmp_path, SENTENCES)
  given = {'tokenizer': 'sentencepiece', 'vocab_size': 300}
  first = open_tiny(tmp_path, **given)
  assert not any('part' in name for name in files(tmp_path))

  def fail(*_):
    raise AssertionError('made again')

  monkeypatch.setattr(text, '_tokenize', fail)
  monkeypatch.setattr(tokenizers, 'train_sentencepiece', fail)
  # With rows of another length as well.
  for length in (8, 5):
    rows = open_tiny(tmp_path, length, **given)
    assert rows.path == first.path
  line = message(lambda: open_tiny(tmp_path, **{**given, 'vocab_size': 310}))
  for part in ('300', '310', '.model', 'remove'):
    assert part in line


def test_another_training_split_has_its_own_pieces(tmp_path):
  write_set(tmp_path, SENTENCES)
  given = {'tokenizer': 'sentencepiece', 'vocab_size': 295}
  a = open_tiny(tmp_path, train_split='train', **given)
  b = open_tiny(tmp_path, train_split='train[:40]', **given)
  assert len(list((tmp_path / 'cache').glob('*.model'))) == 2
  assert a.fingerprint != b.fingerprint


@pytest.mark.parametrize('size', [1, 2, 5])
def test_ranges_make_the_file_of_one_range(tmp_path, monkeypatch, size):
  write_set(tmp_path, DOCUMENTS)
  expected = open_tiny(tmp_path)
  monkeypatch.setattr(text, '_RANGE_DOCUMENTS', size)
  monkeypatch.setattr(text, '_DOCUMENTS', 2)
  monkeypatch.setattr(text, '_cores', lambda: 1)
  got = open_tiny(tmp_path, cache_dir=tmp_path / 'ranges')
  assert got.path.read_bytes() == expected.path.read_bytes()
  assert got.fingerprint == expected.fingerprint


def test_ranges_hold_about_so_many_bytes(tmp_path, monkeypatch):
  write_set(tmp_path, [b'x' * 100] * 50)
  monkeypatch.setattr(text, '_RANGE_BYTES', 1000)
  monkeypatch.setattr(text, '_cores', lambda: 1)
  sizes = []
  whole = text._tokenize_range

  def count(part):
    sizes.append(part.stop - part.start)
    return whole(part)

  monkeypatch.setattr(text, '_tokenize_range', count)
  open_tiny(tmp_path)
  assert sizes == [10] * 5


def test_a_crash_loses_only_the_range_it_was_in(tmp_path, monkeypatch):
  write_set(tmp_path, DOCUMENTS)
  expected = open_tiny(tmp_path, cache_dir=tmp_path / 'whole')
  monkeypatch.setattr(text, '_RANGE_DOCUMENTS', 2)
  monkeypatch.setattr(text, '_cores', lambda: 1)
  whole, done = text._tokenize_range, []

  def crash(part):
    if len(done) == 1:
      # In the middle of writing a part.
      part.path.with_name(f'{part.path.name}.partial').write_bytes(b'??')
      part.path.with_suffix('.json').write_text('[]')
      raise KeyboardInterrupt
    done.append(part.start)
    return whole(part)

  monkeypatch.setattr(text, '_tokenize_range', crash)
  with pytest.raises(KeyboardInterrupt):
    open_tiny(tmp_path)
  assert not any(name.endswith('.tokens') for name in files(tmp_path))

  def resume(part):
    done.append(part.start)
    return whole(part)

  monkeypatch.setattr(text, '_tokenize_range', resume)
  got = open_tiny(tmp_path)
  assert done == [0, 2, 4]
  assert got.path.read_bytes() == expected.path.read_bytes()
  assert got.fingerprint == expected.fingerprint
  assert not any('part' in name for name in files(tmp_path))


def test_a_crash_while_joining(tmp_path, monkeypatch):
  write_set(tmp_path, DOCUMENTS)

  def crash(*_):
    raise KeyboardInterrupt

  with monkeypatch.context() as patched:
    patched.setattr(text, '_append', crash)
    with pytest.raises(KeyboardInterrupt):
      open_tiny(tmp_path)
  assert not any(name.endswith('.json') for name in files(tmp_path))
  monkeypatch.setattr(text, '_tokenize_range', crash)
  rows = open_tiny(tmp_path)
  assert np.fromfile(rows.path, np.uint16).tolist() == stream(DOCUMENTS)


def test_several_processes_tokenise(tmp_path, monkeypatch):
  write_set(tmp_path, DOCUMENTS)
  expected = open_tiny(tmp_path, cache_dir=tmp_path / 'whole')
  monkeypatch.setattr(text, '_RANGE_DOCUMENTS', 3)
  monkeypatch.setattr(text, '_cores', lambda: 2)
  got = open_tiny(tmp_path)
  assert got.path.read_bytes() == expected.path.read_bytes()


def test_a_file_that_was_cut_off(tmp_path):
  write_set(tmp_path, DOCUMENTS)
  rows = open_tiny(tmp_path)
  rows.path.write_bytes(rows.path.read_bytes()[:-2])
  line = message(lambda: open_tiny(tmp_path))
  assert str(rows.path) in line
  assert 'remove' in line
  rows.path.unlink()
  assert str(rows.path) in message(lambda: open_tiny(tmp_path))


def test_a_file_that_is_no_model(tmp_path):
  write_set(tmp_path, SENTENCES)
  given = {'tokenizer': 'sentencepiece', 'vocab_size': 300}
  open_tiny(tmp_path, **given)
  (path,) = (tmp_path / 'cache').glob('*.model')
  path.write_bytes(b'no model')
  assert str(path) in message(lambda: open_tiny(tmp_path, **given))


# --- several processes on one directory ---


def test_the_others_wait_for_the_writer(tmp_path, monkeypatch):
  monkeypatch.setattr(text, '_POLL_SECONDS', 0.01)
  write_set(tmp_path, SENTENCES)
  given = {'tokenizer': 'sentencepiece', 'vocab_size': 300}
  found = []

  def wait():
    found.append(open_tiny(tmp_path, writer=False, wait_seconds=20, **given))

  # They look at what the writer writes, in the order in which it does.
  made, whole = [], text._tokenize

  def tokenize(*arguments):
    time.sleep(0.1)
    made.append(threading.current_thread())
    assert not found
    whole(*arguments)

  monkeypatch.setattr(text, '_tokenize', tokenize)
  waiting = threading.Thread(target=wait, daemon=True)
  waiting.start()
  time.sleep(0.1)
  assert waiting.is_alive()
  rows = open_tiny(tmp_path, **given)
  waiting.join(20)
  assert found == [rows]
  assert made == [threading.current_thread()]


@pytest.mark.parametrize('tokenizer', ['bytes', 'sentencepiece'])
def test_nobody_waits_for_ever(tmp_path, tokenizer):
  write_set(tmp_path, DOCUMENTS)
  line = message(
    lambda: open_tiny(
      tmp_path, tokenizer=tokenizer, writer=False, wait_seconds=0.1
    )
  )
  for part in (str(tmp_path / 'cache'), '0.1 s', 'share'):
    assert part in line
  assert not (tmp_path / 'cache').exists()


# --- damaged and wrong sets ---


def test_records_that_cannot_be_read(tmp_path):
  # An empty example, and one that is no example at all.
  path = write_set(tmp_path, [b'one', None, b'two', b'three' * 100, b'four'])
  content = bytearray(path.read_bytes())
  place = content.index(b'threethree')
  content[place : place + 400] = bytes(400)
  path.write_bytes(content)
  rows = open_tiny(tmp_path)
  expected = stream([b'one', b'two', b'four'])
  assert np.fromfile(rows.path, np.uint16).tolist() == expected
  assert [index for index, _ in rows.skipped] == [1, 3]
  assert all('\n' not in reason and reason for _, reason in rows.skipped)
  (record,) = (tmp_path / 'cache').glob('*.json')
  kept = json.loads(record.read_text())
  assert (kept['documents'], len(kept['skipped'])) == (3, 2)
  assert open_tiny(tmp_path).skipped == rows.skipped


def test_a_set_without_its_records(tmp_path):
  path = write_set(tmp_path, DOCUMENTS)
  path.unlink()
  line = message(lambda: open_tiny(tmp_path))
  assert 'damaged' in line
  assert 'tiny' in line


@pytest.mark.parametrize(
  ('change', 'part'),
  [
    ({'split': 'test'}, 'it has train'),
    ({'split': 'train[:x]'}, 'train[:x]'),
    ({'split': 'train[:0]'}, 'no examples'),
    ({'tokenizer': 'words'}, 'bytes or sentencepiece'),
    ({'sequence_length': 0}, 'sequence_length'),
    ({'tokenizer': 'sentencepiece', 'vocab_size': 3}, 'vocab_size=3'),
    ({'tokenizer': 'sentencepiece', 'train_split': 'x'}, 'it has train'),
  ],
)
def test_what_cannot_be_opened(tmp_path, change, part):
  write_set(tmp_path, DOCUMENTS)
  assert part in message(lambda: open_tiny(tmp_path, **change))


def test_sets_that_are_no_text(tmp_path):
  write_set(tmp_path, DOCUMENTS, features=('question', 'answer'))
  line = message(lambda: open_tiny(tmp_path))
  assert 'answer, question' in line
  # A text of another name, alone, or several, of which one is called 'text'.
  write_set(tmp_path / 'b', DOCUMENTS, features=('text', 'title'))
  assert open_tiny(tmp_path / 'b').tokens == len(stream(DOCUMENTS))


def test_a_set_that_is_not_prepared(tmp_path):
  told = message(lambda: open_tiny(tmp_path))
  assert "'tiny' is not prepared in" in told
  assert 'adabatch[prepare]' not in told  # TFDS has no such set


def test_damaged_metadata(tmp_path):
  path = write_set(tmp_path, DOCUMENTS)
  (path.parent / 'features.json').write_text('{')
  assert 'cannot be read' in message(lambda: open_tiny(tmp_path))


def test_sentencepiece_is_not_imported_for_bytes(tmp_path):
  write_set(tmp_path, DOCUMENTS)
  code = f"""
import sys
from adabatch.data.text import open_text
open_text(
  'tiny', 'train', {str(tmp_path)!r}, tokenizer='bytes', vocab_size=0,
  sequence_length=8, cache_dir={str(tmp_path / 'cache')!r}, train_split='train')
assert 'sentencepiece' not in sys.modules
"""
  subprocess.run([sys.executable, '-c', code], check=True, env=os.environ)


@needs('tiny_shakespeare')
def test_tiny_shakespeare(tmp_path):
  train, validation = (
    open_text(
      'tiny_shakespeare',
      split,
      PREPARED,
      tokenizer='bytes',
      vocab_size=0,
      sequence_length=128,
      cache_dir=tmp_path,
      train_split='train',
    )
    for split in ('train', 'validation')
  )
  # A document each: 1,003,854 and 55,770 characters.
  assert train.tokens == 1_003_856
  assert validation.tokens == 55_772
  assert train.num_examples == 7843
  first = train.read(np.array([0])).arrays['tokens'][0]
  assert ByteTokenizer().decode(first).startswith('First Citizen:\nBefore we')
