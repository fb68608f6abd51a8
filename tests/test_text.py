"""Tokens of queries and items, and the layout found from a tokenizer file."""

from __future__ import annotations

import itertools
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from fixtures_export import write_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel

from edgerec.errors import BundleError, InputError
from edgerec.text import CHARS_PER_TOKEN, TextEncoder, TextSpec, text_spec_from_tokenizer
from edgerec.types import Item
from edgerec.words import clean_text

BERT = {
    "max_tokens": 32,
    "max_query_tokens": 8,
    "item_fields": ["title", "brand"],
    "prefix": [2],
    "middle": [3],
    "suffix": [3],
    "pad_id": 0,
    "query_type": 0,
    "item_type": 1,
}


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    write_tokenizer(path)
    return path


@pytest.fixture(scope="module")
def encoder(tokenizer_file):
    return TextEncoder(tokenizer_file, TextSpec.from_json(BERT))


def write_roberta_style(path, *, pair="<s> $A </s> </s> $B </s>"):
    vocab = {piece: i for i, piece in enumerate(["<s>", "<pad>", "</s>", "<unk>", "red", "lamp", "shade"])}
    tokenizer = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", pair=pair, special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer.save(str(path))
    return path


def test_spec_survives_json():
    spec = TextSpec.from_json(BERT)
    assert spec.to_json() == BERT
    assert TextSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec
    assert spec.max_item_tokens == 29


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"max_tokens": 11}, "leaves no room for an item"),
        ({"max_query_tokens": 0}, "leaves no room"),
        ({"item_fields": []}, "item_fields is"),
        ({"item_fields": ["title", "title"]}, "item_fields is"),
        ({"item_fields": ["colour"]}, "item_fields is"),
        ({"item_fields": "title"}, "must be lists"),
        ({"prefix": [-1]}, "holds -1"),
        ({"prefix": [True]}, "holds True"),
        ({"suffix": ["3"]}, "holds '3'"),
        ({"pad_id": 2**31}, "holds 2147483648"),
        ({"max_tokens": 64.0}, "holds 64.0"),
        ({"more": 1}, "has the keys"),
    ],
)
def test_a_wrong_spec_is_refused_with_the_reason(change, message):
    with pytest.raises(InputError, match=message):
        TextSpec.from_json({**BERT, **change})


@pytest.mark.parametrize("data", [None, [], "text", {}])
def test_what_is_no_spec_is_refused(data):
    with pytest.raises(InputError, match="has the keys"):
        TextSpec.from_json(data)


def test_layout_of_bert_is_found(tokenizer_file):
    spec = text_spec_from_tokenizer(tokenizer_file, max_tokens=32, max_query_tokens=8, item_fields=["title", "brand"])
    assert spec.to_json() == BERT


def test_layout_of_mpnet_and_roberta_is_found(tmp_path):
    path = write_roberta_style(tmp_path / "tokenizer.json")
    spec = text_spec_from_tokenizer(path, max_tokens=16, max_query_tokens=4, item_fields=["title"])
    assert (spec.prefix, spec.middle, spec.suffix) == ((0,), (2, 2), (2,))
    assert (spec.pad_id, spec.query_type, spec.item_type) == (1, 0, 0)


def test_padding_section_decides_the_pad_id_and_padding_and_truncation_do_not_reach_the_tokens(tmp_path):
    path = write_roberta_style(tmp_path / "tokenizer.json")
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.enable_padding(pad_id=6, pad_token="shade", length=12)
    tokenizer.enable_truncation(max_length=2)
    tokenizer.save(str(path))
    spec = text_spec_from_tokenizer(path, max_tokens=16, max_query_tokens=4, item_fields=["title"])
    assert spec.pad_id == 6
    encoder = TextEncoder(path, spec)
    assert encoder.encode_query("red lamp red").tolist() == [4, 5, 4]
    assert encoder.encode_items(["red", "lamp red shade"])[0].tolist() == [4, 5, 4, 6]


@pytest.mark.parametrize("pair", ["<s> $B </s> $A </s>", "<s> $A </s> $B:1 </s>:0"])
def test_a_pair_of_another_form_is_refused(tmp_path, pair):
    path = write_roberta_style(tmp_path / "tokenizer.json", pair=pair)
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        text_spec_from_tokenizer(path, max_tokens=16, max_query_tokens=4, item_fields=["title"])


def test_a_tokenizer_that_knows_no_words_or_no_padding_is_refused(tmp_path):
    tokenizer = json.loads(write_roberta_style(tmp_path / "tokenizer.json").read_text())
    layout = {"max_tokens": 16, "max_query_tokens": 4, "item_fields": ["title"]}
    tokenizer["model"]["vocab"]["<nothing>"] = tokenizer["model"]["vocab"].pop("<pad>")
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="no padding section"):
        text_spec_from_tokenizer(tmp_path / "tokenizer.json", **layout)
    tokenizer["normalizer"] = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="finds no words"):
        text_spec_from_tokenizer(tmp_path / "tokenizer.json", **layout)


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\xff\xfe", b'{"model": 1}'])
def test_a_file_that_is_no_tokenizer_is_a_bundle_error(tmp_path, content):
    path = tmp_path / "tokenizer.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(BundleError, match="is not a tokenizer file"):
        TextEncoder(path, TextSpec.from_json(BERT))


def test_query_and_item_tokenised_apart_make_the_row_of_the_pair(encoder, tokenizer_file):
    query, item = "red desk lamp", "Zenith lamp, 12 inch (red)"
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokens, _ = encoder.encode_items([item])
    row = [2, *encoder.encode_query(query), 3, *tokens, 3]
    assert row == tokenizer.encode(query, item).ids


def test_items_of_a_batch_are_those_encoded_alone(encoder):
    texts = ["red lamp", "", "nordic oak bed" * 20, "\U0001f6cb sofa", "a"]
    tokens, offsets = encoder.encode_items(texts)
    alone = [encoder.encode_items([text])[0].tolist() for text in texts]
    assert [tokens[a:b].tolist() for a, b in itertools.pairwise(offsets)] == alone
    assert tokens.dtype == np.int32
    assert offsets.dtype == np.int64
    assert max(map(len, alone)) == encoder.spec.max_item_tokens


def test_no_items_give_no_tokens(encoder):
    tokens, offsets = encoder.encode_items([])
    assert tokens.tolist() == []
    assert offsets.tolist() == [0]


def test_query_is_cut_to_its_limit(encoder):
    assert len(encoder.encode_query("red lamp " * 50)) == encoder.spec.max_query_tokens
    assert encoder.encode_query("").tolist() == []
    assert encoder.encode_query(" \t\n").tolist() == []


def test_long_text_is_cut_before_it_is_tokenised(encoder):
    limit = encoder.spec.max_query_tokens * CHARS_PER_TOKEN
    hidden = " " * limit + "lamp"
    assert encoder.encode_query(hidden).tolist() == []
    assert len(encoder.encode_query(hidden[1:] + "lamp")) == 1  # of "lamp" the letter l is inside
    assert len(encoder.encode_query("red lamp " * 12_000)) == encoder.spec.max_query_tokens


def test_nul_separates_words_and_a_lone_surrogate_is_a_replacement_character(encoder):
    assert clean_text("red\x00lamp\ud800!") == "red lamp\ufffd!"
    assert encoder.encode_query("red\x00lamp").tolist() == encoder.encode_query("red lamp").tolist()
    assert encoder.encode_query("lamp \udfff").tolist() == encoder.encode_query("lamp \ufffd").tolist()
    assert encoder.encode_items(["\ud83d lamp"])[0].tolist() == encoder.encode_items(["\ufffd lamp"])[0].tolist()


@given(st.text(st.characters(categories=None)))
def test_any_text_can_be_encoded(encoder, text):
    tokens = encoder.encode_query(text)
    assert len(tokens) <= encoder.spec.max_query_tokens
    clean_text(text).encode()


@pytest.mark.parametrize("value", [None, 3, b"red", ["red"]])
def test_what_is_no_text_is_an_input_error(encoder, value):
    with pytest.raises(InputError, match="expected text as str"):
        encoder.encode_query(value)
    with pytest.raises(InputError, match="expected text as str"):
        encoder.encode_items(["red", value])


def test_item_text_joins_the_fields_that_are_not_empty(encoder):
    assert encoder.item_text(Item("1", "Red lamp", brand="Acme", category="unused")) == "Red lamp Acme"
    assert encoder.item_text(Item("1", "", brand="Acme")) == "Acme"
    assert encoder.item_text(Item("1", "")) == ""


def test_sixteen_threads_get_the_answers_of_one(encoder):
    texts = [f"red lamp {i} zenith" for i in range(200)]
    serial = [encoder.encode_query(text).tolist() for text in texts]
    with ThreadPoolExecutor(16) as pool:
        assert [a.tolist() for a in pool.map(encoder.encode_query, texts)] == serial
