// SPDX-License-Identifier: MIT OR Apache-2.0
pragma solidity ^0.8.37;

import {ERC20} from "@openzeppelin/contracts/token/ERC20/ERC20.sol";

import {TestToken} from "./TestToken.sol";

/// @notice Balances change without a transfer, all by the same factor.
contract RebasingToken is TestToken {
    uint256 public percent = 100;

    function rebase(uint256 percent_) external {
        percent = percent_;
    }

    function balanceOf(address owner) public view override returns (uint256) {
        return super.balanceOf(owner) * percent / 100;
    }

    function _update(address from, address to, uint256 value) internal override {
        super._update(from, to, value * 100 / percent);
    }
}

/// @notice Moves nothing to or from a blocked account.
contract BlocklistToken is TestToken {
    mapping(address account => bool) public blocked;

    error Blocked(address account);

    function setBlocked(address account, bool blocked_) external {
        blocked[account] = blocked_;
    }

    function _update(address from, address to, uint256 value) internal override {
        require(!blocked[from], Blocked(from));
        require(!blocked[to], Blocked(to));
        super._update(from, to, value);
    }
}

/// @notice Burns all gas it is given, once told to.
contract BurningToken is TestToken {
    bool public burning;

    function burnAll() external {
        burning = true;
    }

    function _update(address from, address to, uint256 value) internal override {
        while (burning) {}
        super._update(from, to, value);
    }
}

/// @notice What its `permit` does is up to its holder: reverts with much data, burns gas, or calls somebody.
contract HostilePermitToken is TestToken {
    address public target;
    bytes public data;
    bool public succeeded;
    uint256 public bomb;

    function arm(address target_, bytes calldata data_, uint256 bomb_) external {
        (target, data, bomb) = (target_, data_, bomb_);
    }

    function permit(address, address, uint256, uint256, uint8, bytes32, bytes32) public override {
        if (target != address(0)) {
            (succeeded,) = target.call(data);
            return;
        }
        uint256 length = bomb;
        assembly {
            revert(0, length)
        }
    }
}

/// @notice A transfer to anyone takes from them.
contract SiphoningToken is ERC20 {
    uint256 internal _balance = 10;

    constructor() ERC20("Siphoning", "SIP") {}

    function balanceOf(address) public view override returns (uint256) {
        return _balance;
    }

    function transferFrom(address, address, uint256 value) public override returns (bool) {
        _balance -= value;
        return true;
    }
}
