//! Backward by itself: of what the CPU's forward leaves, whatever the one of the same device does.

use super::*;

impl Case {
    fn on(&self, place: Place) -> Case {
        Case { place, ..self.clone() }
    }

    /// `[o, lse]` as the CPU makes them of the same inputs.
    fn outputs(&self, inputs: &[Matrix; 4]) -> [Matrix; 2] {
        let (cpu, width) = (self.on(Place::CPU), self.heads * self.hd);
        let on_cpu = inputs.each_ref().map(|x| {
            let values = x.values();
            cpu.place.matrix(&values, values.len() / width, width, self.lay)
        });
        let [o, lse] = cpu.forward(&on_cpu).unwrap().map(|x| x.values());
        [
            self.place.matrix(&o, self.queries, width, self.lay),
            self.place.of(DType::F32).matrix(&lse, self.heads, self.queries, self.lay),
        ]
    }

    fn judge_gradients(&self, name: &str, inputs: &[Matrix; 4], bound: f64) {
        let [q, k, v, d_o] = inputs.each_ref().map(Matrix::f64);
        let want = self.naive(&q, &k, &v, &d_o, |x| x);
        let rounded = self.naive(&q, &k, &v, &d_o, |x| self.place.round(x));
        let case = (name, self.queries, self.keys, self.heads, self.hd, self.lay, self.place);
        let got = self.backward(inputs, &self.outputs(inputs)).unwrap().map(|x| x.values());
        let want =
            [("dq", want.dq, rounded.dq), ("dk", want.dk, rounded.dk), ("dv", want.dv, rounded.dv)];
        for (got, (name, want, rounded)) in got.iter().zip(want) {
            assert_rounded((name, case), got, &want, &rounded, bound);
        }
    }
}

/// Every instance, whole and with columns to spare, in tiles with a rest of rows.
#[test]
fn any_head_dim() {
    for place in attention_places() {
        for (hd, heads) in
            [(8, 3), (24, 2), (32, 1), (40, 2), (64, 2), (72, 1), (104, 2), (112, 1), (128, 2)]
        {
            for lay in LAYS {
                let case = tree_case(&[(70, &[9, 21])], heads, hd, lay).on(place);
                case.judge_gradients("tree", &case.inputs(), BOUND);
            }
        }
    }
}
