//! Forward by itself, everywhere that it runs.

use super::*;

/// `[o, lse]` of the case's own inputs, judged.
fn judged(name: &str, case: &Case) -> [Vec<f32>; 2] {
    case.judge_outputs(name, &case.inputs(), BOUND).map(|x| x.values())
}

/// Every instance, whole and with columns to spare.
#[test]
fn any_head_dim() {
    for place in attention_places() {
        for (hd, heads) in
            [(8, 3), (24, 2), (32, 1), (40, 2), (64, 2), (72, 1), (104, 2), (112, 1), (128, 2)]
        {
            for lay in LAYS {
                judged("head_dim", &tree_case(&[(70, &[9, 21])], heads, hd, lay).on(place));
            }
        }
    }
}

/// One below, at and above every strip, tile and entry.
#[test]
fn any_length() {
    for place in attention_places() {
        for n in [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 191, 192, 193, 255, 256, 257] {
            judged("causal", &tree_case(&[(n, &[])], 1, 32, Lay::Strided).on(place));
            judged("after a trunk", &tree_case(&[(70, &[n, 3])], 1, 8, Lay::Strided).on(place));
        }
        for (queries, keys) in [
            (1, 1),
            (1, 64),
            (5, 193),
            (16, 7),
            (16, 128),
            (17, 129),
            (64, 65),
            (127, 8),
            (128, 64),
            (129, 191),
            (256, 300),
        ] {
            let segments = vec![Segment::all(0, queries, 0, keys)];
            let (heads, hd, lay) = (2, 24, Lay::Strided);
            judged("cross", &Case { place, segments, queries, keys, heads, hd, lay });
        }
    }
}

#[test]
fn any_pack_of_trees() {
    let lengths = prop::collection::vec((1u32..150, prop::collection::vec(1u32..40, 0..4)), 1..4);
    let packs = (lengths, 1usize..4, 1usize..17);
    for place in attention_places() {
        let cases = if place == Place::CPU { 40 } else { 12 };
        runner(cases)
            .run(&packs, |(shape, heads, chunks)| {
                let shape: Vec<_> = shape.iter().map(|(t, b)| (*t, b.as_slice())).collect();
                judged("any", &tree_case(&shape, heads, 8 * chunks, Lay::Strided).on(place));
                Ok(())
            })
            .unwrap();
    }
}

/// q, k and v head by head in one buffer, as the vision tower has them: the same bits as apart.
#[test]
fn interleaved_heads_are_the_same_heads() {
    for place in attention_places() {
        for lay in LAYS {
            let (rows, hd, heads) = (70, 24, 3);
            let case = Case { lay, ..tree_case(&[(rows as u32, &[])], heads, hd, lay).on(place) };
            let inputs = case.inputs();
            let parts = inputs.each_ref().map(Matrix::values);
            let mut qkv = Vec::new();
            for head in (0..rows).flat_map(|row| (0..heads).map(move |h| (row * heads + h) * hd)) {
                parts[..3].iter().for_each(|part| qkv.extend(&part[head..head + hd]));
            }
            let qkv = place.matrix(&qkv, rows, 3 * heads * hd, lay);
            let mut o = place.poisoned(rows, heads * hd, lay);
            let (mut lse, plan) = (case.statistics(), case.plan());
            let [q, k, v] = Heads::interleaved(qkv.view(), hd);
            let out = HeadsMut::dense(o.view_mut(), hd);
            let mask = case.mask(&plan);
            attention::forward(q, k, v, mask, out, lse.view_mut(), case.scale()).unwrap();
            let apart = case.forward(&inputs).unwrap();
            assert_same_bits(("o", place, lay), &o.values(), &apart[0].values());
            assert_same_bits(("lse", place, lay), &lse.values(), &apart[1].values());
        }
    }
}

/// Scores that rise or fall along the keys, slowly and fast: what a row's sums are relative to changes often, seldom,
/// never.
#[test]
fn scores_may_rise_and_fall() {
    for place in attention_places() {
        let case = tree_case(&[(200, &[])], 1, 8, Lay::Dense).on(place);
        let n = case.queries;
        for slope in [-40.0, -0.5, 0.02, 0.25, 0.5, 3.0, 40.0f32] {
            let mut inputs = case.inputs();
            let ramp = |j: usize, i: usize| if i == 0 { slope * j as f32 } else { 0.1 * i as f32 };
            let keys: Vec<f32> = (0..n * 8).map(|at| ramp(at / 8, at % 8)).collect();
            inputs[0] = place.matrix(&vec![1.0; n * 8], n, 8, Lay::Dense);
            inputs[1] = place.matrix(&keys, n, 8, Lay::Dense);
            // Scores of up to 2800 carry 2e-4 of rounding into the exponent.
            case.judge_outputs("ramp", &inputs, 1e-3);
        }
    }
}

/// NaN and infinity in a query or a key make those rows NaN that see it, and leave the bits of all others.
#[test]
fn what_is_not_finite_shows_where_it_is_seen() {
    for place in attention_places() {
        let (n, hd, at) = (150, 16, 70);
        let case = tree_case(&[(n, &[])], 1, hd, Lay::Dense).on(place);
        let n = n as usize;
        let inputs = case.inputs();
        let clean = case.forward(&inputs).unwrap().map(|x| x.values());
        for (which, value) in [(0, f32::NAN), (0, f32::INFINITY), (1, f32::NAN), (1, f32::INFINITY)]
        {
            let mut inputs = inputs.clone();
            let mut values = inputs[which].values();
            values[at * hd] = value;
            inputs[which] = place.matrix(&values, n, hd, Lay::Dense);
            let [o, lse] = case.forward(&inputs).unwrap().map(|x| x.values());
            for i in 0..n {
                let (row, case) = (i * hd..(i + 1) * hd, (place, which, value, i));
                // an infinite score is NaN where it is positive, and no score at all where it is negative
                let sees = if which == 0 { i == at } else { i >= at };
                if sees && value.is_nan() {
                    assert!(o[row].iter().all(|x| x.is_nan()) && lse[i].is_nan(), "{case:?}");
                } else if !sees {
                    assert_same_bits(case, &o[row.clone()], &clean[0][row]);
                    assert_same_bits(case, &lse[i..=i], &clean[1][i..=i]);
                }
            }
            assert!(o.iter().any(|x| x.is_nan()), "{place:?} {which} {value}");
        }
    }
}

/// More tiles and heads than blocks, and nothing depends on which block comes first.
#[test]
fn the_same_bits_on_another_run() {
    for place in attention_places() {
        let case = tree_case(&[(300, &[60, 50]), (30, &[9])], 5, 40, Lay::Strided).on(place);
        let inputs = case.inputs();
        let first = case.forward(&inputs).unwrap().map(|x| x.values());
        for _ in 0..3 {
            let again = case.forward(&inputs).unwrap().map(|x| x.values());
            assert_same_bits(("o", place), &again[0], &first[0]);
            assert_same_bits(("lse", place), &again[1], &first[1]);
        }
    }
}

/// What changes between packs of as many tokens is in the plan alone.
#[test]
fn one_recorded_launch_serves_every_pack() {
    for place in attention_places() {
        let Device::Cuda(cuda) = place.device else { continue };
        let pack = |shape: &[(u32, &[u32])]| tree_case(shape, 2, 32, Lay::Dense).on(place);
        let packs = [
            pack(&[(100, &[60, 40])]),
            pack(&[(30, &[20]), (50, &[60, 40])]),
            pack(&[(1, &[199])]),
        ];
        let first = &packs[0];
        let inputs = first.inputs();
        let [q, k, v] = [0, 1, 2].map(|i| Heads::dense(inputs[i].view(), first.hd));
        let mut o = place.poisoned(200, 2 * first.hd, Lay::Dense);
        let (mut lse, mut plan) = (first.statistics(), first.plan().unwrap());
        let graph = cuda.capture(|| {
            let (out, mask) = (HeadsMut::dense(o.view_mut(), first.hd), Mask::planned(plan.view()));
            attention::forward(q, k, v, mask, out, lse.view_mut(), first.scale())
        });
        let graph = graph.unwrap();
        for pack in &packs {
            let mut words = vec![0; plan.cols()];
            attention::plan(&pack.segments, 200, 200, &mut words).unwrap();
            plan.upload(Tensor::vector(&words)).unwrap();
            graph.launch().unwrap();
            let expected = pack.forward(&inputs).unwrap();
            let case = (&pack.segments, place);
            assert_same_bits(("o", case), &o.values(), &expected[0].values());
            assert_same_bits(("lse", case), &lse.values(), &expected[1].values());
        }
    }
}

#[test]
fn what_a_gpu_cannot_do_is_refused() {
    for place in attention_places().filter(|&place| place != Place::CPU) {
        let mut case = tree_case(&[(20, &[])], 1, 12, Lay::Dense);
        case.place = place;
        let refused = |case: &Case| refusal(case.forward(&case.inputs()));
        let message = "attention::forward: head_dim is 12, expected a multiple of 8 up to 128 on a GPU; \
                       the CPU takes any";
        assert_eq!(refused(&case), message);
        case.hd = 136;
        assert_eq!(refused(&case), message.replace("12,", "136,"));
        case.hd = 16;
        let [q, k, v, _] = case.inputs();
        let run = |plan: &[u32]| {
            let plan = place.buffer(plan, 1, plan.len());
            let [q, k, v] = [&q, &k, &v].map(|x| Heads::dense(x.view(), case.hd));
            let (mut o, mut lse) = (place.poisoned(20, 16, Lay::Dense), case.statistics());
            let (out, mask) = (HeadsMut::dense(o.view_mut(), case.hd), Mask::planned(plan.view()));
            refusal(attention::forward(q, k, v, mask, out, lse.view_mut(), case.scale()))
        };
        let len = attention::plan_len(20, 20);
        assert_eq!(
            run(&[0; 4]),
            format!("attention::forward: plan has 4 elements, expected {len} or more")
        );
        if !is_emulated() {
            skip("a plan for other tensors ends the context of a real GPU");
            continue;
        }
        for sizes in [[19, 20], [20, 21]] {
            let segments = [Segment::all(0, 19, 0, 20)];
            let mut plan = vec![0; attention::plan_len(20, 21)];
            attention::plan(&segments, sizes[0], sizes[1], &mut plan).unwrap();
            let message = run(&plan);
            assert!(message.contains("attention_forward_d32_bf16"), "{message}");
        }
    }
}

#[test]
fn a_scale_is_finite_and_above_zero() {
    let case = tree_case(&[(3, &[])], 1, 8, Lay::Dense);
    let [q, k, v, _] = case.inputs();
    for scale in [0.0, -1.0, f32::INFINITY, f32::NAN] {
        let [q, k, v] = [&q, &k, &v].map(|x| Heads::dense(x.view(), case.hd));
        let (mut o, mut lse) = (Matrix::poisoned(3, 8, Lay::Dense), case.statistics());
        let out = HeadsMut::dense(o.view_mut(), case.hd);
        let mask = Mask::of(&case.segments);
        let message = refusal(attention::forward(q, k, v, mask, out, lse.view_mut(), scale));
        let expected = format!("scale is {scale}, expected a finite number above 0");
        assert_eq!(message, format!("attention::forward: {expected}"));
    }
}
