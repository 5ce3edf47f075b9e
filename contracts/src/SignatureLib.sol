// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

import {IJobEscrow} from "./interfaces/IJobEscrow.sol";

/// @title Signatures of keys and of contract wallets, checked so that one signer cannot harm the rest of a batch
library SignatureLib {
    /// @notice Gas a contract wallet may spend on one signature.
    uint256 internal constant WALLET_GAS = 100_000;

    /// @notice True if `signature` is the signer's, either by its key (65 bytes, low s) or by ERC-1271.
    /// @dev The key comes first: it is cheaper, and it stays valid for an account that delegates its code (EIP-7702).
    /// Warning: What a contract wallet accepts may change at any time, so a signature that was valid when it was handed
    /// over may not be when it is settled.
    function isValid(address signer, bytes32 digest, bytes calldata signature) internal view returns (bool) {
        // Left out: what an error is about, which does not matter here.
        // slither-disable-next-line unused-return
        (address recovered, ECDSA.RecoverError err,) = ECDSA.tryRecoverCalldata(digest, signature);
        if (err == ECDSA.RecoverError.NoError && recovered == signer) return true;
        return signer.code.length != 0 && _walletAccepts(signer, digest, signature);
    }

    /// @dev Half the order of the curve; a higher s is the same signature's twin.
    uint256 private constant MAX_S = 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0;

    /// @notice Who made the ERC-2098 signature, or zero if it is none (low s only).
    /// @dev As OpenZeppelin's `ECDSA.tryRecover`, in memory that it does not keep, for batches of hundreds.
    function recover(bytes32 digest, bytes32 r, bytes32 vs) internal view returns (uint256 signer) {
        assembly ("memory-safe") {
            let s := shr(1, shl(1, vs))
            let free := mload(0x40)
            mstore(free, digest)
            mstore(add(free, 0x20), add(shr(255, vs), 27))
            mstore(add(free, 0x40), r)
            mstore(add(free, 0x60), s)
            // The precompile returns nothing for what is no signature, and leaves the zero where it is.
            mstore(0x00, 0)
            pop(staticcall(gas(), 1, free, 0x80, 0x00, 0x20))
            signer := mul(mload(0x00), iszero(gt(s, MAX_S)))
        }
    }

    /// @dev A wallet that reverts, burns its gas or returns megabytes is one that does not accept. Too little gas for the
    /// whole allowance reverts instead: otherwise an estimate could settle on an amount at which the wallet runs dry and a
    /// valid item is skipped.
    function _walletAccepts(address wallet, bytes32 digest, bytes calldata signature)
        private
        view
        returns (bool accepted)
    {
        bytes memory data = abi.encodeCall(IERC1271.isValidSignature, (digest, signature));
        // A call may pass on 63/64 of what is left; the account is warm, so a little covers the call itself.
        uint256 needed = WALLET_GAS * 64 / 63 + 1000;
        require(gasleft() >= needed, IJobEscrow.NotEnoughGas(gasleft(), needed));

        bytes32 magic = bytes32(IERC1271.isValidSignature.selector);
        // Assembly, because a high-level call would copy all that the wallet returns, at our expense.
        assembly ("memory-safe") {
            let success := staticcall(WALLET_GAS, wallet, add(data, 0x20), mload(data), 0x00, 0x20)
            accepted := and(success, and(gt(returndatasize(), 0x1f), eq(mload(0x00), magic)))
        }
    }
}
