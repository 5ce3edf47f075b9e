// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

import {IJobEscrow} from "../../src/interfaces/IJobEscrow.sol";
import {TestToken} from "./TestToken.sol";

/// @notice Keeps one percent of every transfer.
contract FeeToken is TestToken {
    function _update(address from, address to, uint256 value) internal override {
        if (from == address(0) || to == address(0)) return super._update(from, to, value);
        uint256 fee = value / 100;
        super._update(from, address(0xfee), fee);
        super._update(from, to, value - fee);
    }
}

/// @notice Returns nothing from transfers, as the oldest tokens do.
contract NoReturnToken is TestToken {
    function transfer(address to, uint256 value) public override returns (bool) {
        super.transfer(to, value);
        assembly {
            return(0, 0)
        }
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        super.transferFrom(from, to, value);
        assembly {
            return(0, 0)
        }
    }
}

/// @notice Says no instead of reverting, once told to.
contract FalseToken is TestToken {
    bool public refusing;

    function refuse() external {
        refusing = true;
    }

    function transfer(address to, uint256 value) public override returns (bool) {
        return refusing ? false : super.transfer(to, value);
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        return refusing ? false : super.transferFrom(from, to, value);
    }
}

/// @notice Reverts on every transfer, once told to.
contract RevertingToken is TestToken {
    bool public refusing;

    error Refused();

    function refuse() external {
        refusing = true;
    }

    function _update(address from, address to, uint256 value) internal override {
        require(!refusing, Refused());
        super._update(from, to, value);
    }
}

/// @notice Returns far more than a word, the first of which is `true`.
contract ReturnBombToken is TestToken {
    uint256 internal constant BOMB = 100_000;

    function transfer(address to, uint256 value) public override returns (bool) {
        super.transfer(to, value);
        assembly {
            mstore(0, 1)
            return(0, BOMB)
        }
    }

    function transferFrom(address from, address to, uint256 value) public override returns (bool) {
        super.transferFrom(from, to, value);
        assembly {
            mstore(0, 1)
            return(0, BOMB)
        }
    }
}

/// @notice Reports whatever balance it is told to, so that any amount can be credited.
contract LyingToken is ERC20 {
    uint256 private _reported;
    uint256 private _next;

    constructor() ERC20("Lying", "LIE") {}

    /// @notice The next `transferFrom` seems to bring `amount`.
    function pretend(uint256 amount) external {
        _reported = 0;
        _next = amount;
    }

    function balanceOf(address) public view override returns (uint256) {
        return _reported;
    }

    function transfer(address, uint256) public pure override returns (bool) {
        return true;
    }

    function transferFrom(address, address, uint256) public override returns (bool) {
        _reported = _next;
        return true;
    }
}

/// @notice Makes one call of its holder's choice in the middle of every transfer.
contract ReentrantToken is TestToken {
    address public target;
    bytes public data;
    bool public succeeded;
    bytes public returned;

    function arm(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value);
        if (target != address(0)) {
            address called = target;
            target = address(0);
            (succeeded, returned) = called.call(data);
        }
    }
}

/// @notice Takes native coin by calling back into the escrow.
contract ReentrantReceiver {
    address public target;
    bytes public data;
    bool public succeeded;
    bytes public returned;

    function arm(address target_, bytes calldata data_) external {
        (target, data) = (target_, data_);
    }

    function execute(address to, uint256 value, bytes calldata call_) external payable returns (bytes memory) {
        (bool ok, bytes memory result) = to.call{value: value}(call_);
        require(ok, string(result));
        return result;
    }

    receive() external payable {
        if (target != address(0)) (succeeded, returned) = target.call(data);
    }
}

/// @notice Takes no native coin.
contract RejectingReceiver {
    function depositAndThaw(IJobEscrow escrow) external payable {
        escrow.deposit{value: msg.value}(address(0), msg.value);
        escrow.thaw(address(0), msg.value);
    }
}
