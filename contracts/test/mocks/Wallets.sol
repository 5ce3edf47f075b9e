// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {IERC1271} from "@openzeppelin/contracts/interfaces/IERC1271.sol";
import {ECDSA} from "@openzeppelin/contracts/utils/cryptography/ECDSA.sol";

/// @notice A contract wallet with one key.
contract KeyWallet is IERC1271 {
    address public immutable key;

    constructor(address key_) {
        key = key_;
    }

    function isValidSignature(bytes32 hash, bytes calldata signature) external view returns (bytes4) {
        return ECDSA.recover(hash, signature) == key ? IERC1271.isValidSignature.selector : bytes4(0);
    }

    function execute(address to, uint256 value, bytes calldata data) external payable {
        (bool ok,) = to.call{value: value}(data);
        require(ok);
    }

    receive() external payable {}
}

/// @notice Accepts everything, after spending about as much gas as it was made with.
contract SpendingWallet is IERC1271 {
    uint256 public immutable spend;

    constructor(uint256 spend_) {
        spend = spend_;
    }

    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        uint256 start = gasleft();
        while (start - gasleft() < spend) {}
        return IERC1271.isValidSignature.selector;
    }
}

/// @notice Burns all gas it is given.
contract BurningWallet is IERC1271 {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        while (true) {}
        return 0;
    }
}

/// @notice Halts on an invalid opcode.
contract InvalidWallet is IERC1271 {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        assembly {
            invalid()
        }
    }
}

contract RevertingWallet is IERC1271 {
    error No();

    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        revert No();
    }
}

/// @notice Reverts with as much data as its gas can pay for.
contract RevertBombWallet is IERC1271 {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        assembly {
            revert(0, 200000)
        }
    }
}

/// @notice Accepts, with as much data behind it as its gas can pay for.
contract ReturnBombWallet is IERC1271 {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        bytes4 magic = IERC1271.isValidSignature.selector;
        assembly {
            mstore(0, magic)
            return(0, 200000)
        }
    }
}

/// @notice Returns the right four bytes and no more, which is no ABI-encoded answer.
contract ShortReturnWallet is IERC1271 {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        bytes4 magic = IERC1271.isValidSignature.selector;
        assembly {
            mstore(0, magic)
            return(0, 4)
        }
    }
}

/// @notice Returns the magic value with dirt behind it.
contract DirtyReturnWallet is IERC1271 {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        bytes4 magic = IERC1271.isValidSignature.selector;
        assembly {
            mstore(0, or(magic, 1))
            return(0, 32)
        }
    }
}

/// @notice Answers everything with an empty success.
contract SilentWallet {
    fallback() external {}
}

/// @notice Accepts everything until its owner thinks better of it.
contract FickleWallet is IERC1271 {
    bool public refusing;

    function refuse() external {
        refusing = true;
    }

    function isValidSignature(bytes32, bytes calldata) external view returns (bytes4) {
        return refusing ? bytes4(0) : IERC1271.isValidSignature.selector;
    }
}

/// @notice Answers with another function's selector.
contract WrongMagicWallet is IERC1271 {
    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        return 0xffffffff;
    }
}

/// @notice Accepts if the call it makes while it is asked succeeds.
contract ReentrantWallet {
    address public target;
    bytes public data;

    function arm(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function isValidSignature(bytes32, bytes calldata) external returns (bytes4) {
        address called = target;
        bytes memory call_ = data;
        bool done;
        // A call, not a static one: only that the caller's is static stops it.
        assembly {
            done := call(gas(), called, 0, add(call_, 0x20), mload(call_), 0, 0)
        }
        return done ? IERC1271.isValidSignature.selector : bytes4(0);
    }
}

/// @notice What a delegated account (EIP-7702) may point at: accepts nothing by ERC-1271 and takes no coin.
contract RefusingDelegate is IERC1271 {
    error No();

    function isValidSignature(bytes32, bytes calldata) external pure returns (bytes4) {
        revert No();
    }
}
