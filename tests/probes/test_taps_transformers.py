"""Taps on Hugging Face models that are built from configurations, so nothing is downloaded."""

import pytest
import torch
from torch.testing import assert_close

from neuropil.probes.streams import ActivityCounter, Moments, TopK, stream
from neuropil.probes.taps import Site, clamp, patch, record, sites, tap, two_pass, zero

transformers = pytest.importorskip("transformers")
NEURONS = Site("transformer.h.*.mlp.c_proj", io="in")
KINDS = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=37, n_positions=32, eos_token_id=36)
    ),
    "opt": lambda: transformers.OPTForCausalLM(
        transformers.OPTConfig(
            num_hidden_layers=2, num_attention_heads=2, hidden_size=16, ffn_dim=32, vocab_size=37,
            max_position_embeddings=32, word_embed_proj_dim=16, eos_token_id=36,
        )
    ),
}  # fmt: skip


def build(kind="gpt2"):
    torch.manual_seed(0)  # restored by the fixture of all tests
    net = KINDS[kind]().eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return net


@pytest.fixture
def ids(generator):
    return torch.randint(36, (2, 6), generator=generator)


def generate(net, ids, **options):
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 36} | options
    return net.generate(ids, attention_mask=torch.ones_like(ids), **options)


def test_generation_with_a_cache_sees_every_token(ids):
    net, seen = build(), []

    def note(tensor, context):
        seen.append((context.site.module, context.step, context.call, context.grid, tuple(tensor.shape)))

    with tap(net, {NEURONS: note}):
        out = generate(net, ids)
    steps = out.shape[1] - ids.shape[1]
    first = [entry[1:] for entry in seen if entry[0] == "transformer.h.0.mlp.c_proj"]
    assert len(seen) == 2 * steps and steps > 1
    assert first == [(0, 0, (2, 6), (2, 6, 64))] + [(step, 0, (2, 1), (2, 1, 64)) for step in range(1, steps)]


def test_a_clamp_in_generation_is_the_same_with_and_without_a_cache(ids):
    net = build()
    neurons = Site("transformer.h.*.mlp.c_proj", io="in", select=(..., [3, 5, 8, 13, 21, 34]))
    texts = []
    for use_cache in (True, False):
        with tap(net, {neurons: clamp(4.0)}):
            texts.append(generate(net, ids, use_cache=use_cache))
    assert torch.equal(*texts)
    assert not torch.equal(texts[0], generate(net, ids))


def test_generation_patched_token_by_token_repeats_the_other_run(ids):
    net, other = build(), build()
    with torch.no_grad():
        other.transformer.h[0].mlp.c_fc.weight.mul_(-1)
    with record(other, NEURONS) as recording:
        theirs = generate(other, ids)
    places = {site: patch(recording.calls(site)) for site in recording}
    with tap(net, places):
        ours = generate(net, ids)
    assert torch.equal(ours, theirs)
    assert not torch.equal(generate(net, ids), theirs)


def test_what_a_silenced_neuron_wrote_is_gone(ids):
    net = build()
    with record(net, Site("transformer.h.0.mlp.c_proj")) as plain, record(net, NEURONS) as acts:
        net(ids)
    with (
        tap(net, {Site("transformer.h.0.mlp.c_proj", io="in", select=(..., 7)): zero()}),
        record(net, "*.0.mlp") as cut,
    ):
        net(ids)
    h = acts[Site("transformer.h.0.mlp.c_proj", io="in")]
    written = h[..., 7:8] * net.transformer.h[0].mlp.c_proj.weight[7]
    assert_close(cut["transformer.h.0.mlp"], plain["transformer.h.0.mlp.c_proj"] - written)


def test_blocks_and_attention_are_reached_at_index_0_and_model_outputs_by_name(ids):
    net = build()
    with tap(net, {"transformer.h.1": zero()}), record(net, ["transformer.ln_f", "transformer.h.0.attn"]) as recording:
        net(ids)
    assert_close(recording["transformer.ln_f"], net.transformer.ln_f.bias.expand(2, 6, 16))
    assert recording["transformer.h.0.attn"].shape == (2, 6, 16)
    with tap(net, {Site("", index="logits"): zero()}):
        out = net(ids)
    assert bool((out.logits == 0).all()) and bool((out["logits"] == 0).all())
    assert type(out).__name__ == "CausalLMOutputWithCrossAttentions" and out.past_key_values is not None


def test_eager_patterns_can_be_kept(ids):
    net = build()
    net.set_attn_implementation("eager")
    pattern = Site("transformer.h.*.attn", index=1)
    with record(net, pattern) as recording:
        out = net(ids, output_attentions=True)
    assert_close(recording[Site("transformer.h.1.attn", index=1)], out.attentions[1])
    assert_close(two_pass(net, ids, Site("transformer.h.0.attn")).logits, out.logits)


def test_patterns_that_are_never_formed_are_named(ids):
    net = build()
    net.set_attn_implementation("sdpa")
    with (
        pytest.raises(ValueError, match=r"h\.0\.attn, index 1 has a NoneType"),
        record(net, Site("*.h.0.attn", index=1)),
    ):
        net(ids)


def test_flattened_tokens_are_laid_out_again(ids):
    net = build("opt")
    (site,) = sites(net, "*.layers.0.fc2", io="in")
    data = [ids, ids.flip(1)]
    seen = stream(
        net,
        data,
        {site: ActivityCounter(positions=6, tokens=37), Site(site.module): TopK(3)},
        context=lambda batch: {"tokens": batch},
    )
    with record(net, site) as recording:
        for batch in data:
            net(batch)
    active = torch.stack([h.view(2, 6, -1) > 0 for h in recording.calls(site)])
    found = seen[site].result()
    assert torch.equal(found.active, active.sum((0, 1, 2)))
    assert torch.equal(found.position_active, active.sum((0, 1)))
    assert torch.equal(found.token_active[ids[0, 0]], active[torch.stack(data) == ids[0, 0]].sum(0))
    exemplars = seen[Site(site.module)].result()
    assert int(exemplars.samples.max()) <= 3 and int(exemplars.positions.max()) <= 5


def test_padding_does_not_count(ids):
    net = build()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[1, 4:] = False
    seen = stream(
        net,
        [ids],
        {NEURONS: Moments()},
        inputs=lambda batch: {"input_ids": batch, "attention_mask": mask.long()},
        context=lambda batch: {"mask": mask},
    )
    with record(net, NEURONS) as recording:
        net(ids, attention_mask=mask.long())
    assert len(seen) == 2
    for site, reducer in seen.items():
        assert reducer.count == 10
        assert_close(reducer.result().mean, recording[site][mask].double().mean(0))
