"""Proof that this machine renders the same rooms as every other: SHA-256 of each array of a few of them."""

import hashlib

from medusa_cl.data.rooms.render import render_room

GOLDEN: dict[str, dict[str, str]] = {
    "5@48x64": {
        "image": "cb7fd96e0080863c269954a3d267cdfc366a1ecb134808a99a505a428fcedd5b",
        "semseg": "63729b75cfcbb0d8df5f49fb8fd209aa6ebca8205edec5bb38e271544039e34c",
        "depth": "143c12a0411247f5cdf16d8359780e693920e36384be8df53921c676e609bfdc",
        "normals": "4815c3eeb7b3400a60a9e239ae69a23801c040ed653aad9318256fb7fc31d834",
        "edges": "11fa0eaf32de083de9ff7599fc76da5d6dc676a0f365152f78b419503c8a9822",
        "reshading": "531432be329d51c1f4ef7f36710262e27d3169c8dd43a39483aab790b5fdbd5e",
        "instances": "98331e128919a711d95f728a4fd98315ad379ebbc4fab7985f418e59ebbfc930",
    },
    "5000001@48x64": {
        "image": "8898aee3e1c4f140d3a039499abb92e058b5a7fc3d389baf9cbbe47dff97a36c",
        "semseg": "c2e7368e6be4c2802d3a6540bdd872581f9f96cca6fb4be6743cc0b0b9aa9875",
        "depth": "a4d66dc65cea4d6bb1b87a42e74eaf2c57787cf591c355c24207dd1cd7879753",
        "normals": "326371ecb96ba21a484a5fa9e47bc3391fae53ebaefc2efd94f0ba8e3be6942b",
        "edges": "f49a41cbef27378bc92e969b6cb0ee2ce725480293f9016d10cd47bb05185fc0",
        "reshading": "182d17499c841c74146b26b4861d2ec0f55f4a9a9507615f12fa07b24898f71f",
        "instances": "ab5ae00ea5eb3f852e34eeefb7b942ad274391e24614ba40396f2be0748e5d84",
    },
    "10000002@72x96": {
        "image": "7a59907a2c4d6285c3d85a7f5d8ce9b146769130679d98d0f2db22967d7b17e1",
        "semseg": "8842e74c8871893a3dc980ac7e8d89c5f6105b31084ce62ea611f504f2c0c768",
        "depth": "2676ba65e9a33a643fe6b4b8910e78473dd833d6831acd61791f4a4d8a82ce2b",
        "normals": "7896fd1ad92615e5ab605e683d3322ef4dff0ca63d1f47cb77e0845800ef5133",
        "edges": "793d35c09983eda4130e94381d86ef8efaa921a1a76d0cb6dcf8df34eec5b4a8",
        "reshading": "4509e83b857a7124383e21f9f8d992a3cd776034971e4bd2dbc8e6e02af2011c",
        "instances": "86411932acb9fe4ad084e3353630fda9d18fe1f3175bf43ad19c680e4e1c6f97",
    },
    "20000003@128x160": {
        "image": "6ce23c94e8cf0fea29e54d5eed05cfde07e3544bf83b23a00f7a723020fc8b37",
        "semseg": "0133e0dd0191b2999f679b552881f6d1f389727ef709bd3ad8062a66f1c74735",
        "depth": "329f75696cc6f204b555b0b17f58e22aa580ad620ff15a7cfeb30968ee197fb1",
        "normals": "b47e944406507e5d8397b0e218537feef120cdb00e01a45c5d45476341a42d73",
        "edges": "d35cc6ce09a5aba61508fcd62e7a71b4ca8d4361378ab2ccb2874d560047fcb0",
        "reshading": "ea7ef971f47f811e389c8d43a813e2f29ae8bf487fdfcbfd2e8c20b07702c39c",
        "instances": "54669e02bcd05d4dfb55a4557805301ad9044f2def821fd70f0620eb8300f9d6",
    },
}
"""{"index@HxW": {field: SHA-256 of its bytes}}; a change here is a change of VERSION."""


def fingerprints(index: int, size: tuple[int, int]) -> dict[str, str]:
    """SHA-256 of the bytes of each array of a room."""
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in render_room(index, size).items()}


def golden_ok() -> bool:
    """Whether this machine renders the golden rooms to the bit (about a second)."""
    for key, expected in GOLDEN.items():
        index, height, width = key.replace("@", "x").split("x")
        if fingerprints(int(index), (int(height), int(width))) != expected:
            return False
    return True
