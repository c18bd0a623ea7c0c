class Repeats:
    def feed(self, a, b):
        return False
