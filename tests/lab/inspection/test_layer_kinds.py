from loraga.lab.inspection.layer_kinds import Place, places


def test_a_llama_layer_is_called_by_its_last_part():
    assert places(["model.layers.12.self_attn.q_proj", "model.layers.3.mlp.down_proj"]) == {
        "model.layers.12.self_attn.q_proj": Place("q_proj", 12),
        "model.layers.3.mlp.down_proj": Place("down_proj", 3),
    }


def test_kinds_that_end_alike_keep_what_tells_them_apart():
    names = ["transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_proj", "transformer.h.1.mlp.c_proj"]

    assert [place.kind for place in places(names).values()] == ["c_attn", "attn.c_proj", "mlp.c_proj"]


def test_encoder_and_decoder_are_other_kinds():
    names = ["encoder.block.0.layer.0.SelfAttention.q", "decoder.block.0.layer.0.SelfAttention.q"]
    names += ["decoder.block.1.layer.1.EncDecAttention.q"]

    assert list(places(names).values()) == [
        Place("encoder SelfAttention.q", 0),
        Place("decoder SelfAttention.q", 0),
        Place("EncDecAttention.q", 1),
    ]


def test_the_experts_of_a_block_are_one_kind():
    names = ["model.layers.4.mlp.experts.0.up", "model.layers.4.mlp.experts.7.up"]

    assert set(places(names).values()) == {Place("up", 4)}


def test_a_layer_outside_the_blocks_has_no_block():
    assert places(["connector.proj", "model.layers.0.proj_in", "classifier.2"]) == {
        "connector.proj": Place("proj", None),
        "model.layers.0.proj_in": Place("proj_in", 0),
        "classifier.2": Place("classifier", 2),
    }
