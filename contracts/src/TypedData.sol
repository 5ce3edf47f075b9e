// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {Assignment, JobSpec, Order, Receipt} from "./interfaces/IJobEscrow.sol";

/// @title EIP-712 struct hashes of everything that is signed
library TypedData {
    bytes32 internal constant ORDER_TYPEHASH = keccak256(
        "Order(address requester,address token,uint128 maxPrice,address node,address assigner,bytes32 specHash,uint64 deadline,uint32 challengeWindow,address arbiter,uint16 maxFeeBps,uint64 nonce)"
    );
    bytes32 internal constant JOB_SPEC_TYPEHASH = keccak256("JobSpec(string inputCID,string operation,string params)");
    bytes32 internal constant ASSIGNMENT_TYPEHASH = keccak256("Assignment(bytes32 jobId,address node,uint64 expiry)");
    bytes32 internal constant RECEIPT_TYPEHASH = keccak256("Receipt(bytes32 jobId,uint128 price,bytes32 resultHash)");
    bytes32 internal constant VOUCHER_TYPEHASH =
        keccak256("Voucher(address requester,address node,address token,uint128 cumulative,uint64 coveredNonce)");

    /// @dev Every member is one static word, so the order in calldata is its EIP-712 encoding. Bits beyond a member's type
    /// revert, as they do wherever else a member is read.
    function hash(Order calldata order) internal pure returns (bytes32 result) {
        bytes32 typeHash = ORDER_TYPEHASH;
        assembly ("memory-safe") {
            let free := mload(0x40)
            mstore(free, typeHash)
            calldatacopy(add(free, 0x20), order, 0x160)
            // Each shift takes the first bit too many of a wider type to that of the next narrower one.
            let dirty := or(mload(add(free, 0x20)), mload(add(free, 0x40))) // requester, token
            dirty := or(dirty, mload(add(free, 0x80))) // node
            dirty := or(dirty, mload(add(free, 0xa0))) // assigner
            dirty := or(dirty, mload(add(free, 0x120))) // arbiter
            dirty := or(shr(32, dirty), mload(add(free, 0x60))) // maxPrice
            dirty := or(shr(64, dirty), mload(add(free, 0xe0))) // deadline
            dirty := or(dirty, mload(add(free, 0x160))) // nonce
            dirty := or(shr(32, dirty), mload(add(free, 0x100))) // challengeWindow
            dirty := or(shr(16, dirty), mload(add(free, 0x140))) // maxFeeBps
            if shr(16, dirty) { revert(0, 0) }
            result := keccak256(free, 0x180)
        }
    }

    function hash(JobSpec calldata spec) internal pure returns (bytes32) {
        return keccak256(
            abi.encode(
                JOB_SPEC_TYPEHASH,
                keccak256(bytes(spec.inputCID)),
                keccak256(bytes(spec.operation)),
                keccak256(bytes(spec.params))
            )
        );
    }

    function hash(Assignment memory assignment) internal pure returns (bytes32) {
        return keccak256(abi.encode(ASSIGNMENT_TYPEHASH, assignment));
    }

    function hash(Receipt memory receipt) internal pure returns (bytes32) {
        return keccak256(abi.encode(RECEIPT_TYPEHASH, receipt));
    }
}
