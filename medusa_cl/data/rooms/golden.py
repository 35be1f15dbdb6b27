"""Proof that this machine renders the same rooms as every other: SHA-256 of each array of a few of them."""

import hashlib
import json

from medusa_cl.data.rooms.render import render_room

VERSION = "v1"
"""Of the data set rooms-v1. Never changed: whatever changes an array or a split is rooms-v2, beside it."""
GOLDEN: dict[str, dict[str, str]] = {
    "5@48x64": {
        "image": "da9dd4561552182e5b30e242c96317d9c8e9ae77a6403bef8142f0395fdc9d54",
        "semseg": "c145986460a29e90154835269bdb074faecc6df0e87a31ca52637d97e81e9300",
        "depth": "344b4111cc3d0972da0ec461762348a14f396ced366b4c6b2ed5a6ea9d5310f9",
        "normals": "972f307ec83945f96031deb59a49e27b55f5c51a83363d48aead0789fb506260",
        "edges": "0e50b327a4ae90597258d5d8be905d244226a6ade5678a75352ed52f7b58e4c0",
        "reshading": "7bb06ab7cc2122ac4e157819fa8d7043c6e0a9b4ecf81ca0e96ee7db82abf210",
        "albedo": "f7eb4b47b28355504aeca1b3ecabad871494d7f9df41113a748d2d8670b2fd43",
        "curvature": "1f3e36b777e2769d10474857656896ac626db9f9e82e6ba7f8dedb6133fe81cd",
        "keypoints2d": "24c2d5d2dc8e6aacd7525017ad6811d825055552e77b805a1da732c0d76336d2",
        "saliency": "48193bd7745948c1c303836005db07328ce15ff73df2d44caae5105b671632e7",
        "instances": "e0f2d39c11d9afbe0bbcd061c721bb06dd379df52b3c42be86ce4a12937d348d",
    },
    "5000001@48x64": {
        "image": "de15cf4c46e5fd49cf552dfe8d1cc577aedecf87c60b465ca6ee0b14d04aa59d",
        "semseg": "0814c4238eb3898681a7a5d0b4a4ce24fc6e86a31c43ea9e86064fb9bd1ffb75",
        "depth": "6fbe4ff1292fd3f9b9b3f7c791dbf0398a975d78174938f4322eb85f3a021d8f",
        "normals": "ba88cb371409f47ffaab60a6ff7377966b5fb1393da144d76d0f9acb293aea71",
        "edges": "4e200f687c7b20ac0452d9fc2738c727996bf0b839f1ad5f21070002b58b980b",
        "reshading": "9456931bef96a9cf03bf14c9b4bbc2adebb2d78397717abe2f46d8203ca362f2",
        "albedo": "b9b31f868093524553d664a3dffed3d84d737bc49880b69614f56b4cfbbb92a3",
        "curvature": "0d151a9d244b91999ae706f52d96bfd7a3cc0cdc54cb3e91665653a971abe292",
        "keypoints2d": "0dec5f6bcb37c584e25a4e79d792abe75b1fa69a99c6d814f36173b519cdaef0",
        "saliency": "e8cd480c8f2b430b223a5989f39bff10cbe3c3570fa01439371682977df9ad0b",
        "instances": "553fcfc3e1653c1a8b49def088b1fd707adf3917f8fe98b5b2fb422112901f00",
    },
    "10000002@72x96": {
        "image": "6bf1c9e4faba39a6fcf7645084b4791f2c44b98d78ba32697ffb0776392fbba5",
        "semseg": "b6881048f364a0a4355062f2e83a9982394210eada18d00c730bca6d6bf14bc1",
        "depth": "02f97e4490023b3e419fe1b1948f63b2dabc3ddd640d8cf3e8e7a3f98fbe5f1b",
        "normals": "41e6389094081215d11702094c6f595e36a3c08edf02da9594bf74a8531d5724",
        "edges": "8a871bdceb33ece94ed0ef5bcf8009a6f2616c1eee3d0a85241483af3cb51887",
        "reshading": "f507209d0a1899b032fdaadbf1c858928520e471f42545137a0f7c0ad9613f86",
        "albedo": "858caa691ca3ef2d4183ecdf8fd25e8fc5eb0e17a1f5891c45059de1afa5ff67",
        "curvature": "9ac95ccccb72ef61a4635a7e8e5b68000798dfa7eb94defdc96c96ec0629d087",
        "keypoints2d": "f6cddf2e010a3f786978d0a40758584be8e51ffe25e30df3b981ee3b04ab4bb0",
        "saliency": "4e70b13cb2bac49fff969336c95d0a2dcdd696b0e7289592928ef10e662f490a",
        "instances": "fd8d336be4b64a44a253b6f689a658a98180d9e1c74aa40f558b8af7883031f1",
    },
    "20000003@128x160": {
        "image": "94ee88841becef0c72975aded2c6fbf953aca15cbce486b92ba59f9694148f0f",
        "semseg": "0f8b16059d8332a1fd0124c407175ed681275f3eccae59323e915cf3f09aaaff",
        "depth": "3c8c6b8e0cafc38fd85082da027d18f2ca0865e9c793d9bffba3f17bdad6bd32",
        "normals": "a3c8b2cc79ec464069ceecc3beb5373d6ac73a3f576a70850f43c21aa8623028",
        "edges": "b50888e4abf2d686d70466d912f5ff3091128ebc8d2e14003e725a83fd54fd33",
        "reshading": "0918673bb128a31cc876c9c05b81aedbd932fc82eb485b01909e97d96e685fc5",
        "albedo": "b7750b07d5292cd22adf75de944fdd8012797d276016ade55e56880a8f3fdec3",
        "curvature": "3ed4305f71f54b6cb9f221cb4792594f60e4d2a9236a49a0f3ab859f5b72ae08",
        "keypoints2d": "6e787c5041dc10f86c4e50e670a2a50b5c73671ad963747e5381a5ff29c5f91d",
        "saliency": "ec85630d1ec291456d5c08902e94be74ef5c683652376b80ca8d510b9d235ec6",
        "instances": "1572c5693845bcc1c8df3781e059eb645ea09c6da3c0d998bbc2f622380935cb",
    },
    "30000004@72x96": {
        "image": "c900b3312cd2f4c1d2102e974e40ce20818e9117acac17850a1f65b529e236f8",
        "semseg": "69156c7bfe07d8010175bffb74487220dcb993218e27f423f02addcb09f128b1",
        "depth": "87c8ccc3bd2f5f34497b99fcf9ba2d41aacc341486c491fc87f3a53b536e4dd3",
        "normals": "2ce027e5ee3b230197cef6746b1f45d8425d5ffa226252fb73ce2fde11aabfbf",
        "edges": "c44fa4a3bf0054a82af76d0a3a58fe66f2bf1733aadd8685a2c3cd97e712d081",
        "reshading": "463a319959a2485efd428d2d8dd7b29875282fe192fa9fb00291964f167803c1",
        "albedo": "99143e51c0ae2b34c81a537fd4234c19ea7d11acbacccf923f913eccb1c7add8",
        "curvature": "a49157673dccd9508e58d0dbe7b68648938a82666fd1dedc4bfbb54fb0b09d26",
        "keypoints2d": "dd5df07fbea6883be9ef1ebac8078484dd25550bb68e2243483a52e426f7c9f5",
        "saliency": "6ab31917cf655a5ca882c52e4753073647c26e0d541b9c8c7e47b473d27acb9c",
        "instances": "cd3ee7d0589d076a3d462ea212b24303eead39ac42c5b633ef78765c930128ce",
    },
}
"""{"index@HxW": {field: SHA-256 of its bytes}}, a room of each split; fixed for as long as VERSION is."""


def golden_hash() -> str:
    """SHA-256 of GOLDEN: the name of exactly these images."""
    return hashlib.sha256(json.dumps(GOLDEN, sort_keys=True).encode()).hexdigest()


def fingerprints(index: int, size: tuple[int, int]) -> dict[str, str]:
    """SHA-256 of the bytes of each array of a room."""
    return {name: hashlib.sha256(array.tobytes()).hexdigest() for name, array in render_room(index, size).items()}


def golden_ok() -> bool:
    """Whether this machine renders the golden rooms to the bit (a second or two)."""
    for key, expected in GOLDEN.items():
        index, height, width = key.replace("@", "x").split("x")
        if fingerprints(int(index), (int(height), int(width))) != expected:
            return False
    return True
