"""Short texts of five kinds, for a look at what losses score where no text is given."""

__all__ = ["SAMPLES"]

_PROSE = """The harbour had been quiet since the ferry stopped running in 1987. "Nobody asked us," said the old pilot,
"and nobody will." He pointed at the breakwater: grey, half-collapsed, 240 metres of it. In winter the counterclockwise
current undermines whatever is rebuilt; misunderstandings between the two councils did the rest. She wrote it all down.

Afterwards they walked back along the quay, past the shuttered ice-cream parlour (closed until May), the chandler's and
the re-roofed customs house. It wasn't far. There were 3 boats left, unpainted; there had been 114.
"""

_CODE = '''import json
from pathlib import Path


class Inventory:
    """Counts of parts, by name."""

    def __init__(self, path, limit=100):
        self.path = Path(path)
        self.limit = limit
        self.counts = {}

    def load(self):
        if not self.path.exists():
            return self
        for line in self.path.read_text().splitlines():
            name, _, number = line.partition(",")
            try:
                self.counts[name.strip()] = int(number)
            except ValueError as error:
                raise RuntimeError(f"{self.path}: {line!r}") from error
        return self

    def take(self, name, number=1):
        left = self.counts.get(name, 0) - number
        if left < 0 or number > self.limit:
            raise KeyError(name)
        self.counts[name] = left  # may be 0
        return left


def main():
    stock = Inventory("stock.csv").load()
    while True:
        word = input("> ")
        if word in ("q", "quit"):
            break
        print(stock.take(word) * 2.5)
'''

_MATHEMATICS = r"""Let $f(x) = 3x^2 - 12x + 7$. Then $f'(x) = 6x - 12$, which is 0 at
$x = 2$, and $f(2) = 12 - 24 + 7 = -5$.
A shop sells 128 pens at $1.75 each and 46 notebooks at $3.20: 128 * 1.75 = 224.00, 46 * 3.20 = 147.20, together 371.20.
\begin{align}
  \sum_{k=1}^{n} k^2 &= \frac{n(n+1)(2n+1)}{6}, \\
  \int_0^1 x^{10} \, dx &= \frac{1}{11} \approx 0.0909.
\end{align}
In 2019 there were 7,632,819 of them, 12.5% more than the 6,784,728 of 2009. So x = 15, y = 201 and z = 3017.
"""

_JSON = """{
  "id": 48213,
  "name": "north gate",
  "enabled": true,
  "position": {"lat": 52.3702, "lon": 4.8952, "height": null},
  "readings": [
    {"time": "2024-03-01T06:00:00Z", "value": 17.25, "unit": "C"},
    {"time": "2024-03-01T07:00:00Z", "value": 18.0, "unit": "C"}
  ],
  "tags": ["outdoor", "battery_low"],
  "owner": {
    "first_name": "Ada",
    "contacts": [
      {"kind": "email", "address": "ada@example.org"}
    ]
  }
}
"""

_CJK = """昨天下午,我们在图书馆讨论了人工智能的发展。老师说:"语言模型的词表不同,切分也就不同。"大家都觉得很有意思。
2024年3月15日,这个城市的气温是18度,比去年同期高3.5度。中华人民共和国的经济在过去四十年里增长很快。
今日は天気がいいので、公園を散歩しました。新しい図書館は駅から五分です。コンピュータの使い方を教えてください。
오늘은 날씨가 좋아서 공원에서 산책했습니다. 새로운 도서관은 역에서 오 분 거리에 있습니다.
"""

SAMPLES = {"prose": _PROSE, "code": _CODE, "mathematics": _MATHEMATICS, "JSON": _JSON, "CJK": _CJK}
