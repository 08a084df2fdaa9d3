//! MD5 (RFC 1321), for the one login that needs it.

const SHIFTS: [[u32; 4]; 4] = [[7, 12, 17, 22], [5, 9, 14, 20], [4, 11, 16, 23], [6, 10, 15, 21]];

pub(crate) fn md5(message: &[u8]) -> [u8; 16] {
    let mut padded = message.to_vec();
    padded.push(0x80);
    while padded.len() % 64 != 56 {
        padded.push(0);
    }
    padded.extend_from_slice(&(message.len() as u64 * 8).to_le_bytes());

    let mut state = [0x6745_2301_u32, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];
    for block in padded.chunks_exact(64) {
        let words: Vec<u32> = block
            .chunks_exact(4)
            .map(|w| u32::from_le_bytes(w.try_into().expect("four bytes")))
            .collect();
        let [mut a, mut b, mut c, mut d] = state;
        for i in 0..64 {
            let (mixed, word) = match i / 16 {
                0 => ((b & c) | (!b & d), i),
                1 => ((d & b) | (!d & c), (5 * i + 1) % 16),
                2 => (b ^ c ^ d, (3 * i + 5) % 16),
                _ => (c ^ (b | !d), (7 * i) % 16),
            };
            let sum = a.wrapping_add(mixed).wrapping_add(sine(i)).wrapping_add(words[word]);
            (a, d, c) = (d, c, b);
            b = b.wrapping_add(sum.rotate_left(SHIFTS[i / 16][i % 4]));
        }
        for (total, round) in state.iter_mut().zip([a, b, c, d]) {
            *total = total.wrapping_add(round);
        }
    }
    let mut digest = [0; 16];
    for (bytes, word) in digest.chunks_exact_mut(4).zip(state) {
        bytes.copy_from_slice(&word.to_le_bytes());
    }
    digest
}

/// The RFC's table T: 2^32 times the absolute sine of i + 1 radians, rounded down.
fn sine(i: usize) -> u32 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    let value = ((i + 1) as f64).sin().abs().mul_add(4_294_967_296.0, 0.0) as u32;
    value
}

#[test]
fn digests_are_those_of_the_rfc() {
    let hex = |text: &str| md5(text.as_bytes()).iter().map(|b| format!("{b:02x}")).collect();
    let cases: [(&str, String); 3] =
        [("", hex("")), ("abc", hex("abc")), ("message digest", hex("message digest"))];
    assert_eq!(cases[0].1, "d41d8cd98f00b204e9800998ecf8427e");
    assert_eq!(cases[1].1, "900150983cd24fb0d6963f7d28e17f72");
    assert_eq!(cases[2].1, "f96b697d7cb7938d525a2f31aaf161d0");
}
