"""What a terminal of kind xterm shows: enough of one for what ncurses writes to it."""
import re

PARTS = re.compile(rb"\x1b\[([?>]?)([0-9;]*)([@-~])|\x1b[()].|\x1b[=>78M]|[\x00-\x1f]|[^\x00-\x1f]", re.DOTALL)


class Screen:
    def __init__(self, lines, columns):
        self.lines, self.columns = lines, columns
        self.rows = [[" "] * columns for _ in range(lines)]
        self.row = self.column = 0
        self.top, self.bottom = 0, lines - 1  # what scrolls
        self.last = " "

    def text(self):
        return "\n".join("".join(row).rstrip() for row in self.rows)

    def feed(self, data):
        for part in PARTS.finditer(data):
            whole, numbers, final = part.group(0), part.group(2), part.group(3)
            if final is not None and part.group(1) == b"":
                self._control(final.decode(), [int(number or 0) for number in numbers.split(b";")])
            elif len(whole) == 1:
                self._character(chr(whole[0]))
            elif whole == b"\x1bM" and self.row == self.top:
                self._scroll(-1)
            elif whole == b"\x1bM":
                self.row -= 1

    def _scroll(self, count):
        """Up by so many lines, or down by a negative number."""
        kept, empty = self.rows[self.top:self.bottom + 1], [[" "] * self.columns for _ in range(abs(count))]
        self.rows[self.top:self.bottom + 1] = kept[count:] + empty if count > 0 else empty + kept[:count]

    def _character(self, character):
        if character == "\r":
            self.column = 0
        elif character == "\n":
            if self.row == self.bottom:
                self._scroll(1)
            else:
                self.row = min(self.row + 1, self.lines - 1)
        elif character == "\b":
            self.column = max(self.column - 1, 0)
        elif character >= " ":
            self.last = character
            if self.row < self.lines and self.column < self.columns:
                self.rows[self.row][self.column] = character
            self.column += 1

    def _erase(self, row, start, end):
        if row < self.lines:
            self.rows[row][start:end] = [" "] * (min(end, self.columns) - start)

    def _control(self, final, numbers):
        count = max(numbers[0], 1)
        if final == "H":
            self.row, self.column = count - 1, (max(numbers[1], 1) if len(numbers) > 1 else 1) - 1
        elif final == "d":
            self.row = count - 1
        elif final == "G":
            self.column = count - 1
        elif final in "AB":
            self.row += count if final == "B" else -count
        elif final in "CD":
            self.column += count if final == "C" else -count
        elif final == "K":
            start, end = {0: (self.column, self.columns), 1: (0, self.column + 1), 2: (0, self.columns)}[numbers[0]]
            self._erase(self.row, start, end)
        elif final == "X":
            self._erase(self.row, self.column, self.column + count)
        elif final == "J":
            self._erase(self.row, self.column, self.columns)
            for row in range(self.row + 1 if numbers[0] == 0 else 0, self.lines):
                self._erase(row, 0, self.columns)
        elif final == "b":
            for _ in range(count):
                self._character(self.last)
        elif final == "P":
            row = self.rows[self.row]
            self.rows[self.row] = row[:self.column] + row[self.column + count:] + [" "] * count
        elif final == "@":
            row = self.rows[self.row]
            self.rows[self.row] = (row[:self.column] + [" "] * count + row[self.column:])[:self.columns]
        elif final in "ST":
            self._scroll(count if final == "S" else -count)
        elif final == "r":
            self.top, self.bottom = count - 1, numbers[1] - 1 if len(numbers) > 1 else self.lines - 1
            self.row = self.column = 0
        elif final not in "hlmt":
            raise ValueError(f"a control that is not known here: {final} {numbers}")
