"""The books of blocks: what is free, cached and used, in which order ids are handed out, what evictions take."""

from hypothesis import given
from hypothesis import strategies as st

from server.engine.blocks import Blocks, chain_hash


def test_blocks_come_as_one_run_from_the_lowest_ids() -> None:
    blocks = Blocks(64, 4)
    first, second, third = blocks.allocate(5), blocks.allocate(4), blocks.allocate(3)
    assert [*first, *second, *third] == list(range(12))
    blocks.free(second)
    assert blocks.allocate(2, after=first[-1]) == [5, 6]
    assert blocks.allocate(3) == [12, 13, 14], "a run is not torn apart while there is a whole one"
    assert blocks.allocate(1, after=third[-1]) == [7]


def test_fragmented_blocks_come_in_runs_as_long_as_there_are() -> None:
    blocks = Blocks(8, 4)
    taken = blocks.allocate(8)
    blocks.free([taken[1], taken[4], taken[5], taken[7]])
    assert blocks.allocate(3) == [4, 5, 1]
    blocks.check([[0, 2, 3, 6, 4, 5, 1]])


def test_full_blocks_stay_cached_and_are_found_by_their_chain() -> None:
    blocks = Blocks(8, 2)
    first = chain_hash(b"", [1, 2])
    second = chain_hash(first, [3, 4])
    table = blocks.allocate(2)
    blocks.publish(table[0], first, b"", [1, 2])
    blocks.publish(table[1], second, first, [3, 4])
    blocks.free(table)
    assert blocks.num_cached == 2
    assert blocks.find_prefix([first, second, chain_hash(second, [5, 6])]) == table
    assert blocks.find_prefix([second]) == [table[1]]
    assert blocks.find_prefix([chain_hash(b"salt", [1, 2])]) == []
    blocks.share(table)
    blocks.check([table])
    blocks.free(table)
    blocks.check()


def test_least_recently_used_goes_first_and_tails_before_heads() -> None:
    blocks = Blocks(4, 1)
    tables = [blocks.allocate(2), blocks.allocate(2)]
    for table in tables:
        parent = b""
        for block in table:
            name = chain_hash(parent, [block])
            blocks.publish(block, name, parent, [block])
            parent = name
    blocks.free(tables[1])
    blocks.free(tables[0])
    assert blocks.allocate(1) == [tables[1][1]]
    assert blocks.allocate(1) == [tables[1][0]]
    assert blocks.allocate(1) == [tables[0][1]]


def test_two_that_computed_the_same_block_publish_it_once() -> None:
    blocks = Blocks(4, 1)
    name = chain_hash(b"", [7])
    one, two = blocks.allocate(2)
    blocks.publish(one, name, b"", [7])
    blocks.publish(two, name, b"", [7])
    assert blocks.find_prefix([name]) == [one]
    blocks.free([one, two])
    assert blocks.num_cached == 1
    blocks.check()


def test_shrinking_evicts_and_growing_brings_back() -> None:
    blocks = Blocks(8, 1)
    table = blocks.allocate(8)
    parent = b""
    for block in table:
        name = chain_hash(parent, [block])
        blocks.publish(block, name, parent, [block])
        parent = name
    blocks.free(table[:6])
    blocks.set_limit(4)
    assert (blocks.num_cached, blocks.num_beyond_limit, blocks.num_available) == (4, 2, 4)
    blocks.check([table[6:]])
    blocks.free(table[6:])
    assert blocks.num_beyond_limit == 0
    blocks.check()
    blocks.set_limit(8)
    assert blocks.num_available == 8
    blocks.check()


def test_unpublished_block_is_found_no_longer() -> None:
    blocks = Blocks(2, 1)
    name = chain_hash(b"", [7])
    table = blocks.allocate(1)
    blocks.publish(table[0], name, b"", [7])
    blocks.unpublish(table[0])
    blocks.free(table)
    assert blocks.find_prefix([name]) == [] and blocks.find_partial(b"", [7]) is None
    blocks.check()


def test_the_block_that_begins_with_the_most_ids_is_found_full_or_not() -> None:
    blocks = Blocks(8, 4)
    contents = ([1, 2, 3, 4], [1, 2, 9, 9], [1, 2, 3], [5, 2, 3, 4])
    table = blocks.allocate(len(contents))
    for block, ids in zip(table, contents, strict=True):
        blocks.publish(block, chain_hash(b"head", ids), b"head", ids)
    blocks.free(table)
    assert blocks.find_partial(b"head", [1, 2, 9, 7]) == (table[1], 3)
    assert blocks.find_partial(b"head", [1, 2, 3, 4]) == (table[0], 4)
    assert blocks.find_partial(b"head", [1, 2, 3, 9])[1] == 3  # type: ignore[index]
    assert blocks.find_partial(b"head", [7, 2]) is None
    assert blocks.find_partial(b"other", [1, 2]) is None
    blocks.check()
    blocks.set_limit(0)
    assert blocks.find_partial(b"head", [1, 2]) is None


@given(st.data())
def test_books_hold_whatever_is_done(data: st.DataObject) -> None:
    blocks = Blocks(12, 1)
    tables: list[list[int]] = []
    names = [chain_hash(b"", [index]) for index in range(6)]
    for _ in range(data.draw(st.integers(1, 40))):
        act = data.draw(st.sampled_from(["take", "grow", "free", "share", "publish", "limit"]))
        if act == "take" and blocks.num_available:
            tables.append(blocks.allocate(data.draw(st.integers(1, blocks.num_available))))
        elif act == "grow" and tables and blocks.num_available:
            tables[0].extend(blocks.allocate(1, after=tables[0][-1]))
        elif act == "free" and tables:
            blocks.free(tables.pop(data.draw(st.integers(0, len(tables) - 1))))
        elif act == "share":
            found = blocks.find_prefix([data.draw(st.sampled_from(names))])
            blocks.share(found)
            tables.extend([found] if found else [])
        elif act == "publish" and tables:
            token_id = data.draw(st.integers(0, 5))
            blocks.publish(data.draw(st.sampled_from(tables[0])), names[token_id], b"", [token_id])
        elif act == "limit":
            blocks.set_limit(data.draw(st.integers(0, 12)))
        blocks.check(tables)
    for table in tables:
        blocks.free(table)
    blocks.set_limit(12)
    blocks.check()
    assert blocks.num_available == 12
