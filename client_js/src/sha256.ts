/* SHA-256 (FIPS 180-4), for pages of any origin: a browser's own is there only for https and localhost. */

const ROUNDS = 64;

const primes: number[] = [];
for (let one = 2; primes.length < ROUNDS; one++) if (primes.every((prime) => one % prime)) primes.push(one);

/** The first 32 bits behind the point of the roots of the first primes. */
const roots = (count: number, exponent: number) => primes.slice(0, count).map((prime) => ((prime ** exponent % 1) * 2 ** 32) | 0);
const CONSTANTS = roots(ROUNDS, 1 / 3);

const turned = (word: number, bits: number) => (word >>> bits) | (word << (32 - bits));

/** The digest in hexadecimal. */
export function sha256(bytes: Uint8Array): string {
  const padded = new DataView(new ArrayBuffer(((bytes.length + 72) >> 6) << 6));
  new Uint8Array(padded.buffer).set(bytes);
  padded.setUint8(bytes.length, 0x80);
  padded.setUint32(padded.byteLength - 8, Math.floor(bytes.length / 2 ** 29));
  padded.setUint32(padded.byteLength - 4, bytes.length << 3);
  const hash = roots(8, 1 / 2);
  const words: number[] = [];
  for (let block = 0; block < padded.byteLength; block += 64) {
    let [a, b, c, d, e, f, g, h] = hash as [number, number, number, number, number, number, number, number];
    for (let round = 0; round < ROUNDS; round++) {
      if (round < 16) words[round] = padded.getInt32(block + 4 * round);
      else {
        const [early, late] = [words[round - 15]!, words[round - 2]!];
        const mixed = (turned(early, 7) ^ turned(early, 18) ^ (early >>> 3)) + (turned(late, 17) ^ turned(late, 19) ^ (late >>> 10));
        words[round] = (words[round - 16]! + words[round - 7]! + mixed) | 0;
      }
      const one = h + (turned(e, 6) ^ turned(e, 11) ^ turned(e, 25)) + ((e & f) ^ (~e & g)) + CONSTANTS[round]! + words[round]!;
      const other = (turned(a, 2) ^ turned(a, 13) ^ turned(a, 22)) + ((a & b) ^ (a & c) ^ (b & c));
      [h, g, f, e, d, c, b, a] = [g, f, e, (d + one) | 0, c, b, a, (one + other) | 0];
    }
    [a, b, c, d, e, f, g, h].forEach((word, index) => (hash[index] = (hash[index]! + word) | 0));
  }
  return hash.map((word) => (word >>> 0).toString(16).padStart(8, "0")).join("");
}
